"""The vectors' file is written again once an erasure has dropped it.

An erasure takes the file away before it is committed, so that no file outlives its lesions. Until
it is written again, a process that is killed leaves none, and the next start compares every vector:
an approximate index is not made while a service waits for it.
"""

import asyncio

from bundle.errors import LesionError
from service.state import Service

LOOK_S = 60.0


async def keep_vectors(service: Service) -> None:
    """Look once a minute, for ever, whether the served catalogue's vectors lie on disk."""
    while True:
        await asyncio.sleep(LOOK_S)
        runtime = service.loaded
        catalogue = None if runtime is None else runtime.catalogue
        if catalogue is None:
            continue
        try:
            if catalogue.is_kept:
                continue
            # Changes wait meanwhile, searches do not.
            await asyncio.to_thread(catalogue.save)
        except (LesionError, OSError) as error:
            service.log.error("vectors_not_saved", detail=str(error))
        else:
            service.log.info("vectors_saved", lesions=len(catalogue))
