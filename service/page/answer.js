// Parts of an answer that both panels show.
import { chip, el, fieldWords, measured, percent, plain, spaced, words } from "./dom.js";

const REASONS = {
  too_small: "the image is too small",
  blurred: "the image is blurred",
  too_dark: "the image is too dark",
  too_bright: "the image is too bright",
  no_contrast: "the image has no contrast",
  unlike_training_images: "the image is unlike those the model has learned from",
  not_assessable: "its image cannot be assessed",
  no_context_model: "this model does not compare lesions",
  fewer_than_three_lesions: "needs three lesions",
  no_assessable_lesion: "no image can be assessed",
  not_given: "not given",
  image_not_assessable: "the image cannot be assessed",
  no_catalogue: "no reference lesions",
  neighbours_too_far: "no lesion looks similar enough",
  too_few_neighbours: "too few similar lesions have it",
  neighbours_disagree: "similar lesions disagree",
  from_catalogue: "from this patient's lesions in the catalogue",
};
export const reason = (code) => REASONS[code] ?? words(code);

// An answer stands only beside what it was made from: whatever changes takes it away.
export function clearAnswer(form, results, empty, images) {
  results.replaceChildren(empty);
  results.classList.remove("busy");
  form.querySelector(".primary").disabled = !images.length;
}

export function problemNotice(problem) {
  return el("div", { class: "notice bad", role: "alert" },
    el("strong", {}, "No answer"), el("p", {}, problem.message),
    el("small", {}, [problem.code, problem.requestId && `request ${problem.requestId}`].filter(Boolean).join(" · ")));
}

export function qualityNotice(quality) {
  return el("div", { class: "notice", role: "note" },
    el("strong", {}, "Not assessable"),
    el("p", {}, "No probability is given, because there would be no ground for it. Take another photograph: in focus, evenly lit, the lesion in the middle."),
    el("ul", {}, quality.reasons.map((code) => el("li", {}, reason(code)))));
}

// Images that are left out are named as the page shows them, from 1.
export function warningsNotice(warnings, leftOut = []) {
  const shown = warnings.filter((warning) => !["image_only", "image_left_out"].includes(warning.code)).map((warning) => warning.message);
  const all = [...leftOut, ...shown];
  if (!all.length) return null;
  return el("div", { class: "notice", role: "note" },
    el("strong", {}, "Please note"),
    el("ul", {}, all.map((text) => el("li", {}, text))));
}

export const leftOut = (quality, name) => quality.images.filter((image) => image.reasons.length)
  .map((image) => `${name(image.index)} does not count: ${image.reasons.map(reason).join(", ")}`);

// Where the probabilities hold.
export const prevalence = (model) => model.site_prevalence === null
  ? `where ${percent(model.training_prevalence)} of lesions are malignant`
  : `where ${percent(model.site_prevalence)} of lesions are malignant (this site)`;

// The page was made from what another model said of itself.
export function otherModel(answer, model) {
  if (answer.bundle_id === model.bundle_id) return null;
  return problemNotice({ message: "The service answers with another model since this page was opened. Load the page again.", code: "model_changed", requestId: answer.request_id });
}

// A label, and in a word whether it is malignant: never by its colour alone.
export const label = (text, malignant) => [spaced(text), malignant ? el("span", { class: "malign" }, "malignant") : null];

const SOURCES = { given: "given", extrapolated: "guessed", missing: "not known" };

function ground(entry) {
  if (entry.source === "missing") return entry.reason ? reason(entry.reason) : "";
  if (entry.source === "given") return entry.reason ? reason(entry.reason) : "by you";
  const span = entry.interval ? `, ${plain(entry.interval[0])} to ${plain(entry.interval[1])}` : "";
  return `${entry.support} similar lesions, ${percent(entry.agreement)} agree${span}`;
}

export function metadataTable(metadata, units) {
  const rows = Object.entries(metadata).map(([name, entry]) => el("tr", {},
    el("td", {}, fieldWords(name)),
    el("td", {}, entry.value === null ? "—" : measured(entry.value, units[name])),
    el("td", {}, chip(SOURCES[entry.source], entry.source), el("small", {}, ground(entry)))));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ["Field", "Value", "Where it is from"].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows)));
}

export const trace = (answer) => el("p", { class: "fine" },
  `Request ${answer.request_id} · bundle ${answer.bundle_id.slice(0, 12)}`);
