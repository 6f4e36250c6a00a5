// The caller's key: typed in, kept for this tab only, sent as a header and never in an address.
const NAME = "slimp-key";
const form = document.getElementById("key");

export function withKey(options) {
  const key = sessionStorage.getItem(NAME);
  return key ? { ...options, headers: { Authorization: `Bearer ${key}` } } : options;
}

// Shows the field with the reason, and returns once a key was entered.
function askForKey(problem) {
  form.querySelector(".field-error").textContent =
    problem.code === "unauthenticated" ? "" : problem.message;
  form.hidden = false;
  form.elements.key.focus();
  return new Promise((resolve) => form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(NAME, form.elements.key.value.trim());
    form.reset();
    form.hidden = true;
    resolve();
  }, { once: true }));
}

// Returns what the work returns; asks for a key as long as the service wants another.
export async function untilKnown(work) {
  for (;;) {
    try {
      return await work();
    } catch (problem) {
      if (problem.status !== 401 && problem.status !== 403) throw problem;
      await askForKey(problem);
    }
  }
}

export const forgetKey = () => sessionStorage.removeItem(NAME);
export const hasKey = () => sessionStorage.getItem(NAME) !== null;
