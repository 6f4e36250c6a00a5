// Starts the page once the service is ready, and switches between its two panels.
import { get, openWithKey } from "./api.js";
import { forgetKey, hasKey, untilKnown } from "./key.js";
import { fetchSite, startLesion } from "./lesion.js";
import { startPatient } from "./patient.js";

const WAIT_MS = 1500;
const state = document.getElementById("service-state");

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const choose = (chosen, focus) => {
    for (const tab of all) {
      const on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) chosen.focus();
  };
  all.forEach((tab, position) => {
    tab.addEventListener("click", () => choose(tab, false));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(all[(position + step + all.length) % all.length], true);
    });
  });
}

async function untilReady() {
  for (;;) {
    try {
      await get("/readyz");
      state.hidden = true;
      return;
    } catch (problem) {
      state.hidden = false;
      state.classList.toggle("bad", problem.code !== "loading");
      state.textContent = problem.message;
      document.getElementById("served").textContent = problem.code === "loading" ? "loading…" : "not ready";
    }
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
  }
}

// The warning that a service without access control gives of itself, and a way to leave one with.
function showAccess(model) {
  const open = model.warnings.find((warning) => warning.code === "access_off");
  const banner = document.getElementById("access-off");
  banner.hidden = !open;
  banner.textContent = open?.message ?? "";
  const forget = document.getElementById("forget-key");
  forget.hidden = !hasKey();
  forget.addEventListener("click", () => { forgetKey(); location.reload(); });
  document.querySelectorAll(".with-key").forEach(openWithKey);
}

async function start() {
  tabs();
  await untilReady();
  const site = await untilKnown(fetchSite);
  showAccess(site.model);
  document.getElementById("served").textContent =
    `bundle ${site.model.bundle_id.slice(0, 8)} · ${site.model.catalogue.lesions.toLocaleString("en")} reference lesions`;
  document.getElementById("limits").textContent =
    site.model.limits.length ? `Limits of this model: ${site.model.limits.join(" ")}` : "";
  startLesion(document.getElementById("panel-lesion"), site);
  startPatient(document.getElementById("panel-patient"), site);
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  state.hidden = false;
  state.classList.add("bad");
  state.textContent = error.message;
});
