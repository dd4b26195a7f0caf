// Keeps the page true: asks again and again, listens to events, and says so when it cannot.

import { follow, get, list, Refused } from "./api.js";
import { age, clock } from "./format.js";
import { targets } from "./targets.js";
import * as view from "./view.js";

const EVERY_MS = 3000;
const RETRY_MS = 2000;
// After this long without a full answer the page counts as out of date.
const STALE_MS = 12000;
const SOON_MS = 250;
const MOST_DEVICES = 2000;
const MOST_OTHERS = 500;
const MOST_EVENTS = 100;
const MOST_DETAILS = 50;

const find = (id) => document.getElementById(id);

const state = {
  devices: [],
  more: false,
  deployments: [],
  plans: [],
  targets: [],
  models: [],
  details: new Map(),
  events: [],
  known: false, // whether anything was ever read
  readAt: 0, // this machine's time of the last full answer, ms
  skew: 0, // the server's time minus this machine's, ms
  problem: "", // why the last question failed
  lost: false, // whether that was for want of any answer
  unready: "", // why the control plane itself is not ready
  live: false, // whether the stream of events is open
};

// ---------------------------------------------------------------- asking

let timer = 0;
let asking = false;

async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  const began = Date.now();
  try {
    const [devices, deployments, places, models, health] = await Promise.all([
      list("api/v1/devices", MOST_DEVICES),
      list("api/v1/deployments", MOST_OTHERS),
      list("api/v1/targets", MOST_OTHERS),
      list("api/v1/models", MOST_OTHERS),
      readiness(),
    ]);
    // Only sharded deployments have plans.
    const sharded = deployments.items.some(({ shards }) => (shards ?? null) !== null);
    const plans = sharded ? await list("api/v1/plans", MOST_OTHERS) : { items: [] };
    measure(devices.items);
    Object.assign(state, {
      devices: devices.items,
      more: devices.more,
      deployments: deployments.items,
      plans: plans.items,
      targets: places.items,
      models: models.items,
      unready: health.unready,
      skew: health.now - Date.now(),
      known: true,
      readAt: Date.now(),
      problem: "",
      lost: false,
    });
    void describe();
  } catch (error) {
    state.problem = error.message;
    state.lost = !(error instanceof Refused);
  }
  asking = false;
  render();
  // A large fleet is asked less often, so that asking never is most of what the server does.
  const pause = state.problem ? RETRY_MS : Math.max(EVERY_MS, 5 * (Date.now() - began));
  schedule(pause);
}

function schedule(ms) {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(refresh, ms);
}

/** Whether the control plane has what it needs to know the fleet. */
async function readiness() {
  try {
    const { now } = await get("readyz");
    return { now, unready: "" };
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return { now: serverNow(), unready: error.detail };
  }
}

/** What the newest versions are; versions never change, so each is asked for once. */
async function describe() {
  const wanted = state.models.slice(0, MOST_DETAILS).filter((model) => !state.details.has(`${model.name}:${model.latest}`));
  for (const { name, latest } of wanted) {
    try {
      const { body } = await get(`api/v1/models/${encodeURIComponent(name)}/versions/${encodeURIComponent(latest)}`);
      state.details.set(`${name}:${latest}`, { format: body.format, size_bytes: body.size_bytes, card: body.card && { model: body.card.model } });
    } catch (error) {
      if (error instanceof Refused) continue; // deleted meanwhile
      return; // the next refresh says what is wrong
    }
  }
  if (wanted.length) render();
}

// ---------------------------------------------------------------- throughput

const counters = new Map(); // device -> {uptime, answered, rate}

/** Answers a second of each device, from two telemetry messages of the same boot. */
function measure(devices) {
  for (const { id, condition, telemetry } of devices) {
    if (condition === "offline" || !telemetry) {
      counters.delete(id);
      continue;
    }
    const uptime = telemetry.uptime_s;
    const answered = Object.values(telemetry.models).reduce((sum, [count]) => sum + count, 0);
    const last = counters.get(id);
    if (last?.uptime === uptime) continue;
    const grown = last && uptime > last.uptime && answered >= last.answered;
    counters.set(id, { uptime, answered, rate: grown ? (answered - last.answered) / (uptime - last.uptime) : null });
  }
}

function throughput() {
  const rates = state.devices.map(({ id }) => counters.get(id)?.rate ?? null).filter((rate) => rate !== null);
  return rates.length ? rates.reduce((sum, rate) => sum + rate, 0) : null;
}

// ---------------------------------------------------------------- events

let listening = null;

async function listen() {
  if (listening) return;
  const controller = new AbortController();
  listening = controller;
  while (!controller.signal.aborted) {
    try {
      if (!state.events.length) await readEvents();
      const after = state.events.length ? state.events[0].id : null;
      await follow("api/v1/events", after, controller.signal, () => setLive(true), onEvent);
    } catch {
      // Whether the control plane is there is for `refresh` to say; here only events are missing.
    }
    setLive(false);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function readEvents() {
  const { body } = await get(`api/v1/events?limit=${MOST_EVENTS}`);
  state.events = body.items;
  renderEvents();
}

function onEvent(event) {
  if (event.kind === "reset") {
    // Some were missed: read them anew, beside what follows.
    void readEvents().catch(() => {});
  } else if (!state.events.some(({ id }) => id === event.id)) {
    state.events = [event, ...state.events].sort((a, b) => b.id - a.id).slice(0, MOST_EVENTS);
    renderEvents();
  }
  schedule(SOON_MS);
}

function setLive(live) {
  if (state.live !== live) {
    state.live = live;
    renderEvents();
  }
}

// ---------------------------------------------------------------- showing

const serverNow = () => Date.now() + state.skew;

function isStale() {
  return Boolean(state.problem) || (state.known && Date.now() - state.readAt > STALE_MS);
}

function render() {
  renderTruth();
  renderEvents();
  if (!state.known) return;
  view.overview({ ...state, throughput: throughput() });
  view.devices(state.devices, state.more, find("filter").value, state.readAt + state.skew, open);
  view.deployments(state.deployments, state.plans, true, open);
  targets(state.targets, true);
  view.models(state.models, state.details, true);
  renderDrawer();
}

function renderEvents() {
  view.events(state.events, state.known);
  find("events-state").textContent = state.live ? "live" : "not live: events may be missing";
}

/** Whether what is shown is so, in plain words. */
function renderTruth() {
  const stale = isStale();
  document.body.classList.toggle("stale", stale && state.known);
  const banner = find("banner");
  let text = "";
  if (stale) {
    text = state.problem || "The control plane has not answered for a while.";
    text += state.known
      ? ` You see the fleet as it was at ${clock(state.readAt)}.`
      : " Nothing is known about the fleet yet.";
  } else if (state.unready) {
    text = `The control plane is not ready: ${state.unready}. What it says about devices may be out of date.`;
  }
  banner.hidden = !text;
  banner.classList.toggle("mild", !stale);
  // Only on change, since a screen reader reads every one.
  for (const id of ["banner-text", "drawer-truth"]) {
    if (find(id).textContent !== text) find(id).textContent = text;
  }
  find("banner-age").textContent = stale && state.known ? `(${age(Date.now() - state.readAt)})` : "";
  find("drawer-truth").hidden = !text;
  if (stale && !state.known) view.nothingKnown();
  let pulse = ["", "Connecting"];
  if (stale) pulse = ["bad", state.lost ? "Connection lost" : "Out of date"];
  else if (state.unready) pulse = ["warn", "Not ready"];
  else if (state.known) pulse = ["good", "Up to date"];
  find("pulse").className = `pulse ${pulse[0]}`;
  if (find("pulse-text").textContent !== pulse[1]) find("pulse-text").textContent = pulse[1];
  document.title = stale && state.known ? "(out of date) Shoal" : "Shoal";
}

// ---------------------------------------------------------------- the drawer: #device/ID

const drawer = find("drawer");
let shown = "";

function open(id) {
  location.hash = `device/${encodeURIComponent(id)}`;
}

function opened() {
  const match = /^#device\/(.+)$/.exec(location.hash);
  try {
    return match && decodeURIComponent(match[1]);
  } catch {
    return null;
  }
}

function renderDrawer() {
  const id = opened();
  if (!id) {
    if (drawer.open) drawer.close();
    return;
  }
  view.drawer(id, state.devices.find((device) => device.id === id), state.readAt + state.skew);
  shown = id;
  if (!drawer.open) drawer.showModal();
}

drawer.addEventListener("close", () => {
  // The row that opened it may have been drawn anew meanwhile.
  document.querySelector(`#device-rows [data-key="${CSS.escape(shown)}"] button`)?.focus();
  if (opened()) history.pushState(null, "", location.pathname + location.search);
});
drawer.addEventListener("click", (event) => {
  if (event.target === drawer) drawer.close(); // the backdrop
});
find("drawer-close").addEventListener("click", () => drawer.close());
window.addEventListener("hashchange", () => state.known && renderDrawer());

// ---------------------------------------------------------------- start

find("filter").addEventListener("input", render);
find("retry").addEventListener("click", refresh);
window.addEventListener("online", refresh);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    // A hidden page asks nothing, and holds no connection that others could use.
    clearTimeout(timer);
    listening?.abort();
    listening = null;
    return;
  }
  renderTruth();
  void refresh();
  void listen();
});
setInterval(() => {
  renderTruth();
  view.tick(serverNow());
}, 1000);
void refresh();
void listen();
