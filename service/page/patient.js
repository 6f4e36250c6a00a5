// The panel for a patient's lesions: /risk.
import { post } from "./api.js";
import { clearAnswer, label, leftOut, otherModel, prevalence, problemNotice, reason, trace, warningsNotice } from "./answer.js";
import { chip, el, fieldWords, measured, percent, track } from "./dom.js";
import { clearMarks, fieldRow, fieldset, markField, readRecord } from "./form.js";
import { addImages, dropzone, shot } from "./images.js";

export function startPatient(panel, site) {
  const form = panel.querySelector("form");
  const results = panel.querySelector(".results");
  const empty = results.firstElementChild;
  const list = form.querySelector(".lesion-list");
  const images = [];
  let asked = 0;
  let named = 0;

  const forget = () => {
    asked += 1;
    clearAnswer(form, results, empty, images);
  };
  const changed = () => {
    forget();
    for (const image of images) image.row ??= lesionRow(image, site, `Lesion ${++named}`, () => {
      images.splice(images.indexOf(image), 1);
      changed();
    });
    list.replaceChildren(...images.map((image) => image.row));
  };
  const limit = site.model.max_images_risk;
  dropzone(form.querySelector(".drop"), {
    title: "Choose or drop images",
    hint: `one image for each lesion, at most ${limit}`,
    limit,
    added: (more) => { const room = addImages(images, more, limit); changed(); return room; },
  });
  const patientFields = fieldset("The patient", site.fields.filter((field) => field.level === "patient"));
  form.querySelector(".fields").replaceChildren(...[patientFields].filter(Boolean));

  form.addEventListener("input", forget);
  form.addEventListener("reset", () => {
    images.length = 0;
    named = 0;
    changed();
    clearMarks(form);
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const turn = ++asked;
    const button = form.querySelector(".primary");
    clearMarks(form);
    button.disabled = true;
    results.classList.add("busy");
    const sent = [...images];
    const outcome = await post("/risk", parts(form, sent)).then((answer) => ({ answer }), (problem) => ({ problem }));
    if (turn !== asked) return;
    results.classList.remove("busy");
    button.disabled = !images.length;
    if (outcome.problem) {
      results.replaceChildren(problemNotice(outcome.problem));
      markField(rowOf(sent, outcome.problem) ?? form, outcome.problem);
      return;
    }
    const other = otherModel(outcome.answer, site.model);
    results.replaceChildren(...other ? [other] : show(outcome.answer, sent, site));
    results.scrollIntoView({ block: "nearest" });
  });
}

function lesionRow(image, site, name, remove) {
  image.name = name;
  const fields = site.fields.filter((field) => field.level === "lesion");
  const known = fields.length ? el("details", {}, el("summary", {}, "What is known of it"), fields.map(fieldRow)) : null;
  return el("li", {}, shot(image), el("div", {}, el("strong", {}, name), known),
    el("button", { type: "button", class: "remove", "aria-label": `Remove ${name}`, onclick: remove }, "×"));
}

// The row of the lesion that a problem names: "lesion 'Lesion 3': ...".
function rowOf(images, problem) {
  return images.find((image) => problem.message.startsWith(`lesion '${image.name}'`))?.row;
}

function parts(form, images) {
  const lesions = images.map((image, position) => ({ ...readRecord(image.row), id: image.name, images: [position] }));
  const result = images.map((image) => ["images", image.file]);
  result.push(["lesions", JSON.stringify(lesions)]);
  result.push(["patient", JSON.stringify(readRecord(form.querySelector(".fields")))]);
  result.push(["extrapolate", String(form.elements.extrapolate.checked)]);
  const id = form.elements.patient_id.value.trim();
  if (id) result.push(["patient_id", id]);
  return result;
}

function show(answer, images, site) {
  const shots = Object.fromEntries(images.map((image) => [image.name, image]));
  const weight = (lesion) => lesion.risk_in_context ?? lesion.malignancy ?? -1;
  const ranked = [...answer.lesions].sort((a, b) => weight(b) - weight(a));
  return [
    summary(answer.patient, answer.lesions, site),
    warningsNotice(answer.warnings, answer.lesions.flatMap((lesion) => lesion.status === "answered" ? leftOut(lesion.quality, () => `An image of ${lesion.id}`) : [])),
    el("section", { class: "card" }, el("h2", {}, "Lesions, the most suspicious first"),
      el("div", { class: "scroll" }, el("table", { class: "ranking" },
        el("thead", {}, el("tr", {}, ["", "Lesion", "Alone", "In context", "Unlike the others"].map((text, column) =>
          el("th", { scope: "col", class: column > 1 ? "number" : null }, text || el("span", { class: "unseen" }, "Image"))))),
        el("tbody", {}, ranked.map((lesion) => lesionLine(lesion, shots[lesion.id], site)))))),
    trace(answer),
  ].filter(Boolean);
}

function summary(patient, lesions, site) {
  const judged = lesions.filter((lesion) => lesion.status === "answered").length;
  const seen = `${patient.lesions_used} of ${lesions.length + patient.lesions_from_catalogue} lesions could be used`
    + (patient.lesions_from_catalogue ? `, ${patient.lesions_from_catalogue} of them from the catalogue` : "");
  const context = patient.context === "enough"
    ? "enough to compare them with each other" : "too few to compare with each other";
  return el("section", { class: "card" },
    el("h2", {}, "Probability that at least one of these lesions is malignant"),
    patient.risk === null
      ? el("div", { class: "figure plain" }, `No figure: ${reason(patient.reason)}`)
      : [el("div", { class: "figure" }, percent(patient.risk)), track(patient.risk, { malignant: true }),
        el("p", { class: "fine" }, `of the ${judged} that were sent and could be judged, their risks taken as independent, ${prevalence(site.model)}; it grows with their number`)],
    el("p", { class: "fine" }, `${seen}; ${context}.`));
}

function share(value) {
  return value === null ? el("span", { class: "muted" }, "—") : [percent(value), track(value, { malignant: true, mini: true })];
}

function oddness({ score, basis }) {
  const others = basis === "reference" ? "reference lesions" : "the others";
  if (score === 0) return `less odd than all ${others}`;
  return score === 1 ? `odder than all ${others}` : `odder than ${percent(score)} of ${others}`;
}

// What was not given and similar lesions say.
function guesses(metadata, site) {
  const said = Object.entries(metadata).filter(([, entry]) => entry.source === "extrapolated")
    .map(([name, entry]) => `${fieldWords(name)} ${measured(entry.value, site.units[name])}`);
  return said.length ? el("small", {}, `guessed: ${said.join(", ")}`) : null;
}

function lesionLine(lesion, image, site) {
  const malignant = site.model.malignant_labels.includes(lesion.label);
  const state = lesion.status === "answered"
    ? chip(label(lesion.label, malignant), malignant ? "malignant" : "")
    : [chip("not assessable", "bad"), el("small", {}, lesion.quality.reasons.map(reason).join(", "))];
  const duckling = lesion.ugly_duckling;
  const odd = duckling.rank === null
    ? el("small", {}, duckling.reason ? reason(duckling.reason) : "—")
    : [`rank ${duckling.rank}`, el("small", {}, oddness(duckling))];
  return el("tr", {},
    el("td", {}, image ? shot(image) : null),
    el("td", {}, el("strong", {}, lesion.id), el("div", {}, state), guesses(lesion.metadata, site)),
    el("td", { class: "number", "data-column": "Alone" }, share(lesion.malignancy)),
    el("td", { class: "number", "data-column": "In context" }, share(lesion.risk_in_context)),
    el("td", { class: "number", "data-column": "Unlike the others" }, odd));
}
