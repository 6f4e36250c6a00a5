// Renders the OpenAPI document, so that no script of another host is needed.
import { get, openWithKey } from "./api.js";
import { el } from "./dom.js";
import { hasKey, untilKnown } from "./key.js";

const target = document.getElementById("doc");

const named = (document_, reference) => document_.components.schemas[reference.split("/").pop()];

function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" | ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return schema.items ? `[${typeOf(schema.items)}, …]` : "[…]";
  if (schema.type === "object" && schema.additionalProperties) return `{name: ${typeOf(schema.additionalProperties)}}`;
  return schema.format === "binary" ? "file" : schema.contentMediaType ? "JSON text" : schema.type ?? "any";
}

const bounds = (schema) => ["minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength"]
  .filter((name) => schema[name] !== undefined).map((name) => `${name} ${schema[name]}`).join(", ");

function table(heading, rows) {
  if (!rows.length) return null;
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, [heading, "Type", "Meaning"].map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, rows)));
}

function row(name, schema, required) {
  const example = schema.examples?.[0];
  return el("tr", {}, el("td", {}, el("code", {}, name), required ? el("small", {}, "required") : null),
    el("td", {}, el("code", {}, typeOf(schema)), el("small", {}, bounds(schema))),
    el("td", {}, schema.description ?? "", example === undefined ? null
      : el("small", {}, "e.g. ", el("code", {}, typeof example === "string" ? example : JSON.stringify(example)))));
}

const properties = (schema) => Object.entries(schema.properties ?? {})
  .map(([name, property]) => row(name, property, (schema.required ?? []).includes(name)));

function curl(path, verb, body) {
  const key = hasKey() ? ["-H \"Authorization: Bearer $SLIMP_KEY\""] : [];
  const sent = verb !== "post" ? [] : Object.entries(body.properties).map(([name, property]) => {
    if (name.startsWith("image")) return `-F ${name}=@lesion.jpg`;
    const example = property.examples?.[0] ?? property.default;
    return typeof example === "string" && example !== "" && name !== "patient_id" ? `-F '${name}=${example}'` : null;
  }).filter((part) => part && !part.includes("lesions="));
  return [`curl '${location.origin}${path}'`, ...key, ...sent].join(" \\\n  ");
}

function operation(document_, path, verb, content) {
  const body = content.requestBody?.content["multipart/form-data"]?.schema;
  const answer = content.responses["200"]?.content?.["application/json"]?.schema;
  const errors = Object.entries(content.responses).filter(([status]) => status !== "200")
    .map(([status, response]) => `${status} ${response.description}`);
  return el("article", { class: "card" },
    el("h3", {}, el("span", { class: "verb" }, verb.toUpperCase()), el("code", {}, path)),
    el("p", {}, content.description ?? content.summary),
    table("Part of the form", body ? properties(body) : []),
    table("Parameter", (content.parameters ?? []).map((parameter) =>
      row(parameter.name, { ...parameter.schema, description: parameter.description ?? parameter.schema.description }, parameter.required))),
    el("pre", {}, curl(path, verb, body)),
    answer?.$ref ? el("details", {}, el("summary", {}, "Answer: ", el("code", {}, typeOf(answer))),
      table("Value", properties(named(document_, answer.$ref)))) : null,
    errors.length ? el("p", { class: "fine" }, `Errors: ${errors.join(" · ")}`) : null);
}

function schemas(document_) {
  return Object.entries(document_.components.schemas).sort().map(([name, schema]) =>
    el("details", { class: "card", id: name }, el("summary", {}, el("code", {}, name)),
      el("p", {}, schema.description ?? ""), table("Value", properties(schema))));
}

const document_ = await untilKnown(() => get("/openapi.json"));
document.querySelectorAll(".with-key").forEach(openWithKey);
const tags = new Map();
for (const [path, verbs] of Object.entries(document_.paths)) {
  for (const [verb, content] of Object.entries(verbs)) {
    const tag = content.tags?.[0] ?? "other";
    tags.set(tag, [...(tags.get(tag) ?? []), operation(document_, path, verb, content)]);
  }
}
target.replaceChildren(
  el("p", {}, "Multipart forms in, JSON out. Errors are RFC 9457 problem details with a stable code; every answer carries request_id, bundle_id and warnings."),
  ...[...tags].flatMap(([tag, operations]) => [el("h2", {}, tag.charAt(0).toUpperCase() + tag.slice(1)), ...operations]),
  el("h2", {}, "Schemas"), ...schemas(document_));
