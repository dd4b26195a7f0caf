// What the page shows of the fleet.

import { h, keyed } from "./dom.js";
import { age, clock, milliseconds, percent, providers, rate, runsOn, size } from "./format.js";

// An online device reports every few seconds; after this it says less than it should.
const SILENT_MS = 30000;
export const NONE = "–";

const find = (id) => document.getElementById(id);

/** A state in its colour. */
export function badge(state) {
  return h("span", { class: `badge ${state}` }, state.replaceAll("_", " "));
}

/** How long ago, kept right by `tick`. */
function since(moment, now) {
  const at = Date.parse(moment);
  return h("time", { datetime: moment, title: new Date(at).toLocaleString(), "data-at": at }, age(now - at));
}

/** Bring all ages on the page up to the server's time `now`. */
export function tick(now) {
  for (const element of document.querySelectorAll("[data-at]")) {
    const text = age(now - Number(element.dataset.at));
    if (element.textContent !== text) element.textContent = text;
  }
}

function isSilent(device, now) {
  return device.condition !== "offline" && now - Date.parse(device.last_seen) > SILENT_MS;
}

export function overview({ devices, more, deployments, models, throughput }) {
  const count = (condition) => devices.filter((device) => device.condition === condition).length;
  const [online, cordoned, offline] = ["online", "cordoned", "offline"].map(count);
  const bar = h("div", { class: "bar", "aria-hidden": "true" });
  for (const [name, number] of [["online", online], ["cordoned", cordoned], ["offline", offline]]) {
    if (!number) continue;
    const part = h("span", { class: name });
    part.style.flexGrow = number;
    bar.append(part);
  }
  const serving = deployments.filter((deployment) => deployment.state === "ready").length;
  const live = devices.filter((device) => device.condition !== "offline" && device.telemetry);
  const queued = live.reduce((sum, device) => sum + depth(device), 0);
  find("overview").replaceChildren(
    tile("Devices", `${devices.length}${more ? "+" : ""}`, [
      bar,
      h("p", {}, `${online} online`, cordoned ? `, ${cordoned} cordoned` : "", `, ${offline} offline`),
    ]),
    tile("Deployments ready", `${serving} of ${deployments.length}`, [h("p", {}, ...troubles(deployments))]),
    tile("Answers a second", throughput === null ? NONE : rate(throughput), [
      h("p", {}, throughput === null ? "not measured yet" : "as the devices count them"),
    ]),
    tile("Waiting requests", live.length ? String(queued) : NONE, [
      h("p", {}, live.length ? `on ${live.length} ${live.length === 1 ? "device" : "devices"}` : "no device reports"),
    ]),
    tile("Models", String(models.length), [h("p", {}, "in the registry")]),
  );
}

function tile(name, figure, more) {
  return h("div", { class: "tile" }, h("h2", {}, name), h("p", { class: "figure" }, figure), ...more);
}

function troubles(deployments) {
  const counts = new Map();
  for (const { state } of deployments) {
    if (state !== "ready") counts.set(state, (counts.get(state) ?? 0) + 1);
  }
  if (!counts.size) return [deployments.length ? "all as wanted" : "none yet"];
  return [[...counts].map(([state, number]) => `${number} ${state}`).join(", ")];
}

function depth(device) {
  return Object.values(device.telemetry.models).reduce((sum, [, , waiting]) => sum + waiting, 0);
}

export function devices(items, more, filter, now, open) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = items.filter((device) => words.every((word) => searchable(device).includes(word)));
  keyed(
    find("device-rows"),
    shown.map((device) => ({ ...device, silent: isSilent(device, now) })),
    (device) => device.id,
    (device) => deviceRow(device, now, open),
  );
  const note = find("devices-empty");
  note.hidden = shown.length > 0 && !more;
  if (!items.length) note.textContent = "No device has joined yet.";
  else if (!shown.length) note.textContent = "No device matches the filter.";
  else note.textContent = `These are the first ${items.length} devices: see the API for all of them.`;
}

function searchable(device) {
  const board = device.board ?? {};
  const labels = Object.entries(device.labels).map(([key, value]) => `${key}=${value}`);
  const models = device.replicas.map(
    (replica) => `${replica.model}:${replica.version} ${replica.state} ${runsOn(replica)} ${replica.fallback ? "on the CPU" : ""}`,
  );
  const simulated = board.simulated ? "simulated" : "";
  return [device.id, device.condition, board.family, board.model, board.soc, simulated, ...labels, ...models]
    .join(" ")
    .toLowerCase();
}

function deviceRow(device, now, open) {
  const { board, telemetry } = device;
  const away = device.condition === "offline";
  // What a device said before it left is no news: only its models are shown, as what it had.
  const current = away ? null : telemetry;
  const labels = Object.entries(device.labels).map(([key, value]) => `${key}=${value}`);
  return h(
    "tr",
    { class: away ? "away" : "" },
    h(
      "th",
      { scope: "row" },
      h("button", { type: "button", class: "link", "data-focus": "open", onclick: () => open(device.id) }, device.id),
      labels.length ? h("span", { class: "quiet labels" }, labels.join(" · ")) : null,
    ),
    cell("Condition", badge(device.condition), device.silent ? h("span", { class: "badge silent" }, "silent") : null),
    cell("Board", board ? board.model : NONE, board?.simulated ? h("span", { class: "tag" }, "simulated") : null),
    cell("Models", device.replicas.length ? device.replicas.map((replica) => replicaChip(replica, away)) : NONE),
    cell("Load", current ? load(current.cpu_load) : NONE),
    number("Temperature", current ? temperature(current) : NONE),
    number("Queue", current ? String(depth(device)) : NONE),
    number("Seen", since(device.last_seen, now)),
  );
}

export function cell(label, ...children) {
  return h("td", { "data-label": label }, h("div", {}, ...children));
}

export function number(label, ...children) {
  const made = cell(label, ...children);
  made.className = "number";
  return made;
}

function replicaChip(replica, away) {
  const name = `${replica.model}:${replica.version}`;
  const title = away ? `${name}: the device is offline` : [name, replica.state, replica.reason || told(replica)].filter(Boolean).join(": ");
  return h(
    "span",
    { class: `chip ${away ? "away" : tone(replica)}`, title },
    h("span", { class: "dot", "aria-hidden": "true" }),
    name,
    away ? h("em", {}, "offline") : remark(replica),
  );
}

/** The state of a replica, or that it runs on the CPU of a device that has something faster. */
function tone(replica) {
  return replica.fallback ? "fallback" : replica.state;
}

function remark(replica) {
  if (replica.fallback) return h("em", {}, "on the CPU");
  return replica.state === "ready" ? null : h("em", {}, replica.state);
}

/** Where a replica runs and what its device notes about that. */
function told(replica) {
  return [runsOn(replica), ...replica.notes].filter(Boolean).join("; ");
}

function load(fraction) {
  return gauge({ max: 1, high: 0.9, value: Math.min(fraction, 1) }, percent(fraction));
}

export function gauge(attributes, text) {
  return h("span", { class: "gauge" }, h("meter", { min: 0, "aria-hidden": "true", ...attributes }), h("span", { class: "figures" }, text));
}

function temperature(telemetry) {
  const degrees = telemetry.temperature_c === null ? NONE : `${Math.round(telemetry.temperature_c)} °C`;
  return telemetry.throttled ? [degrees, h("span", { class: "badge degraded" }, "throttled")] : degrees;
}

export function deployments(items, plans, known, open) {
  const planned = new Map(plans.map((plan) => [plan.name, plan]));
  const rows = items.map((deployment) => {
    const placements = deployment.placements.map(({ profile, load_s, ...placement }) => placement);
    return { ...deployment, placements, plan: planned.get(deployment.name) ?? null };
  });
  keyed(find("deployment-rows"), rows, (deployment) => deployment.name, (deployment) => deploymentRow(deployment, open));
  empty("deployments", items, known, "Nothing is deployed: shoal deployment create MODEL");
}

function deploymentRow(deployment, open) {
  const { ready, wanted, plan } = deployment;
  const select = Object.entries(deployment.select).map(([key, value]) => `${key}=${value}`);
  const chips = deployment.placements.map((placement) => {
    const { device, state, reason } = placement;
    const title = [state, reason || told(placement)].filter(Boolean).join(": ");
    return h(
      "button",
      { type: "button", class: `chip ${tone(placement)}`, title, "data-focus": device, onclick: () => open(device) },
      h("span", { class: "dot", "aria-hidden": "true" }),
      device,
      remark(placement),
    );
  });
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, deployment.name, select.length ? h("span", { class: "quiet labels" }, select.join(" · ")) : null),
    cell("Model", `${deployment.model}:${deployment.version}`),
    cell(
      "State",
      badge(deployment.state),
      deployment.saturation && deployment.saturation.level !== "calm" ? badge(deployment.saturation.level) : null,
      deployment.require_accelerator ? h("span", { class: "tag" }, "accelerator required") : null,
    ),
    cell(
      "Ready",
      gauge({ max: Math.max(wanted, 1), value: Math.min(ready, wanted), class: "good" }, `${ready} of ${wanted}`),
      deployment.all ? h("span", { class: "tag" }, "all") : null,
    ),
    cell("Devices", plan ? pipeline(plan, open) : chips.length ? chips : NONE),
    cell("Reason", reasons(deployment, plan)),
  );
}

/** What keeps a deployment from being ready, how full its devices are, and where the rest may go. */
function reasons(deployment, plan) {
  const { saturation, offload } = deployment;
  const busy = saturation && (saturation.level !== "calm" || saturation.shed > 0 || Object.values(saturation.spilled).some(Boolean));
  const lines = [
    deployment.reason || plan?.reason,
    busy && saturation.sentence,
    offload.length ? `may offload to ${offload.join(", ")}` : "",
  ].filter(Boolean);
  return lines.length ? lines.map((line) => h("p", { class: "line" }, line)) : NONE;
}

/** The stages of a sharded model as a row of devices with arrows, and how the plan is. */
function pipeline(plan, open) {
  const stages = plan.stages.map((stage, index) =>
    h(
      "span",
      { class: "step" },
      index ? h("span", { class: "arrow", role: "img", "aria-label": "then" }, "→") : null,
      h(
        "span",
        { class: "stage", title: [`stage ${index}`, stage.segments].filter(Boolean).join(": ") },
        stage.parts.map((part) => stageChip(index, stage, part, open)),
      ),
    ),
  );
  const { predicted, single, fallbacks, spares } = plan;
  const facts = [
    plan.stages.length === 1 ? "1 stage" : `${plan.stages.length} stages`,
    `epoch ${plan.epoch}`,
    predicted && `${rate(predicted.throughput_per_s)} answers a second predicted`,
    predicted && single && `${(predicted.throughput_per_s / single.throughput_per_s).toFixed(1)}x ${single.device} alone`,
    fallbacks.length ? `ready to lose ${fallbacks.map(({ lost }) => lost).join(", ")}` : "no fallback",
    ...spares.map(({ device, stages: held }) => `${device} holds stage ${held.join(", ")} as well`),
  ];
  return [
    h("div", { class: "pipeline" }, stages),
    h(
      "p",
      { class: "plan quiet" },
      badge(plan.state),
      " ",
      plan.stages.length ? facts.filter(Boolean).join(" · ") : "no stages yet",
    ),
  ];
}

function stageChip(index, stage, { device, state }, open) {
  const took = `${milliseconds(stage.compute_ms)} ${stage.measured ? "measured" : "predicted"}`;
  const sends = stage.out_bytes === null ? "" : `, sends ${size(stage.out_bytes)}`;
  const title = `stage ${index}, ${state}: ${took}, ${size(stage.memory_bytes)}${sends}`;
  return h(
    "button",
    { type: "button", class: `chip ${state}`, title, "data-focus": `${index} ${device}`, onclick: () => open(device) },
    h("span", { class: "dot", "aria-hidden": "true" }),
    device,
    h("em", {}, state === "ready" ? milliseconds(stage.compute_ms) : state),
  );
}

export function models(items, details, known) {
  const rows = items.map((model) => ({ ...model, detail: details.get(`${model.name}:${model.latest}`) ?? null }));
  keyed(find("model-rows"), rows, (model) => model.name, ({ name, latest, versions, detail }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name, detail?.card ? h("span", { class: "quiet labels" }, detail.card.model.description) : null),
      cell("Newest", latest, versions.length > 1 ? h("span", { class: "quiet" }, ` of ${versions.length}`) : null),
      cell("Format", detail ? detail.format : NONE),
      number("Size", detail ? size(detail.size_bytes) : NONE),
    ),
  );
  empty("models", items, known, "No models yet: shoal model push PATH --name NAME");
}

export function events(items, known) {
  keyed(find("event-rows"), items, (event) => String(event.id), (event) => {
    const tone = event.kind.split(".").pop();
    const at = Date.parse(event.time);
    return h(
      "li",
      {},
      h("time", { datetime: event.time, title: new Date(at).toLocaleString() }, clock(at)),
      h("span", { class: `kind ${tone}` }, event.kind),
      h("span", { class: "message" }, event.message),
    );
  });
  empty("events", items, known, "Nothing has happened yet.");
}

export function empty(section, items, known, text) {
  const note = find(`${section}-empty`);
  note.hidden = items.length > 0;
  if (known) note.textContent = text;
}

/** Before anything was read: an empty list would be a claim. */
export function nothingKnown() {
  for (const section of ["devices", "deployments", "targets", "models", "events"]) {
    find(`${section}-empty`).textContent = "Not known";
  }
}

/** Everything about one device; null where it is gone. */
export function drawer(id, device, now) {
  find("drawer-title").textContent = id;
  const body = find("drawer-body");
  if (!device) {
    body.replaceChildren(h("p", { class: "empty" }, "This device is not in the fleet."));
    return;
  }
  const print = JSON.stringify([device, isSilent(device, now)]);
  if (body.print === print && body.firstChild) return;
  body.print = print;
  const away = device.condition === "offline";
  const { board } = device;
  const telemetry = away ? null : device.telemetry;
  const memory = telemetry && device.memory_bytes
    ? `${size(telemetry.memory_used_bytes)} of ${size(device.memory_bytes)} in use`
    : device.memory_bytes && size(device.memory_bytes);
  const rows = [
    ["Condition", [badge(device.condition), isSilent(device, now) ? h("span", { class: "badge silent" }, "silent") : null]],
    ["Seen", since(device.last_seen, now)],
    ["Board", board && [board.model, board.simulated ? h("span", { class: "tag" }, "simulated") : null]],
    ["Family", board && [board.family, board.soc].filter(Boolean).join(", ")],
    ["Accelerators", device.accelerators.map(accelerator).join("; ")],
    ["Runtimes", device.runtimes.map((runtime) => `${runtime.name} ${runtime.version}: ${providers(runtime.providers) || runtime.formats.join(", ")}`).join("; ")],
    ["Toolkits", Object.entries(device.toolkits).map(([name, version]) => `${name} ${version}`).join(", ")],
    ["Power mode", device.power_mode],
    ["Cores", device.cores],
    ["Load", telemetry && load(telemetry.cpu_load)],
    ["Memory", memory],
    ["Accelerator load", telemetry && acceleratorLoad(telemetry)],
    ["Disk", device.disk_free_bytes !== null && `${size(device.disk_free_bytes)} free`],
    ["Temperature", telemetry && telemetry.temperature_c !== null && temperature(telemetry)],
    ["Power", telemetry && telemetry.power_w && `${telemetry.power_w.toFixed(1)} W`],
    ["Labels", Object.entries(device.labels).map(([key, value]) => h("span", { class: "tag" }, `${key}=${value}`))],
    ["Agent", device.agent_version],
    ["Goal", device.goal !== null && `${device.goal}, the device acts on ${device.goal_seen ?? NONE}`],
    ["First seen", new Date(device.first_seen).toLocaleString()],
  ];
  body.replaceChildren(
    away ? h("p", { class: "note bad" }, "The device is offline. Its models are what it reported last; its load is not known.") : "",
    ...device.notes.map((note) => h("p", { class: "note" }, note)),
    h("dl", {}, ...rows.filter(([, value]) => value && value.length !== 0).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("h3", {}, "Models"),
    ...(device.replicas.length
      ? device.replicas.map((replica) => replicaCard(replica, telemetry, away))
      : [h("p", { class: "empty" }, "No models.")]),
  );
}

/** As in "Orin (gpu): 16 GiB, fp16, int8, compute capability 8.7". */
function accelerator({ name, kind, memory_bytes: memory, precisions, compute_capability: capability, transfer_bytes_per_s: speed }) {
  const more = [
    memory ? size(memory) : "",
    ...precisions,
    capability && `compute capability ${capability}`,
    speed ? `${size(speed)}/s from the host` : "",
  ].filter(Boolean);
  return `${name} (${kind})${more.length ? `: ${more.join(", ")}` : ""}`;
}

function acceleratorLoad({ accelerator_load: busy, accelerator_memory_used_bytes: used }) {
  const parts = [busy === null ? "" : percent(busy), used === null ? "" : `${size(used)} of its memory in use`];
  return parts.filter(Boolean).join(", ");
}

const COMPILED = { here: "compiled here", shared: "compiled by another device of its kind" };

function replicaCard(replica, telemetry, away) {
  const counts = telemetry?.models[`${replica.model}:${replica.version}`];
  const { profile } = replica;
  const rows = [
    ["Deployment", replica.deployment],
    ["Variant", replica.variant],
    ["Runs on", runsOn(replica)],
    ["Runtime", replica.runtime],
    ["Loaded", replica.load_s && [`in ${replica.load_s.toFixed(2)} s`, COMPILED[replica.compiled]].filter(Boolean).join(", ")],
    ["Golden difference", replica.golden_error !== null && replica.golden_error.toPrecision(2)],
    ["Memory", replica.memory_bytes ? size(replica.memory_bytes) : ""],
    ["One item", profile && milliseconds(profile.intercept_ms + profile.slope_ms)],
    ["Batches", profile && `up to ${profile.knee}`],
    ["Answered", counts && counts[0].toLocaleString()],
    ["Failed", counts && counts[1].toLocaleString()],
    ["Queue", counts && String(counts[2])],
  ];
  return h(
    "div",
    { class: "replica" },
    h("h4", {}, `${replica.model}:${replica.version}`, away ? h("span", { class: "badge away" }, "offline") : badge(replica.state)),
    replica.fallback && !away
      ? h("p", { class: "note warn" }, "It runs on the CPU although the device has an accelerator.")
      : null,
    ...replica.notes.map((note) => h("p", { class: "note" }, note)),
    replica.reason ? h("p", { class: replica.state === "failed" ? "note bad" : "note" }, replica.reason) : null,
    h("dl", {}, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
  );
}
