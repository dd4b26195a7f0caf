// What the page shows of targets.

import { h, keyed } from "./dom.js";
import { milliseconds, money } from "./format.js";
import { badge, cell, empty, gauge, NONE, number } from "./view.js";

export function targets(items, known) {
  keyed(document.getElementById("target-rows"), items, (target) => target.name, targetRow);
  empty("targets", items, known, "No targets: when the devices are full, requests are refused. shoal target add NAME --kind KIND");
}

function targetRow(target) {
  const chips = target.models.map(({ model, version, state, reason, ready, wanted, pinned }) =>
    h(
      "span",
      { class: `chip wide ${state}`, title: [`${model}:${version} is ${state.replaceAll("_", " ")}`, reason].filter(Boolean).join(": ") },
      h("span", { class: "dot", "aria-hidden": "true" }),
      `${model}:${version}`,
      h("em", {}, [state === "ready" ? "" : state.replaceAll("_", " "), wanted || ready ? `${ready} of ${wanted}` : "", pinned === null ? "" : "fixed"].filter(Boolean).join(", ")),
    ),
  );
  const wanted = target.models.reduce((sum, model) => sum + model.wanted, 0);
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, target.name, target.where ? h("span", { class: "quiet labels" }, target.where) : null),
    cell("Kind", target.kind),
    cell("State", badge(target.state)),
    cell("Models", chips.length ? chips : NONE),
    number("Replicas", wanted || target.ready ? `${target.ready} of ${wanted}` : "0"),
    number("Latency", latency(target.models)),
    cell("Spent in an hour", spent(target)),
    cell("Reason", target.reason || NONE),
  );
}

/** The least and the most of the 95th percentiles of a target's models. */
function latency(models) {
  const known = models.map(({ p95_ms }) => p95_ms).filter((ms) => ms !== null);
  if (!known.length) return NONE;
  const [least, most] = [Math.min(...known), Math.max(...known)].map(milliseconds);
  return least === most ? least : `${least} to ${most}`;
}

function spent({ spent_last_hour: sum, cap_per_hour: cap }) {
  if (cap === null) return `${money(sum)}, no cap`;
  const text = `${money(sum)} of ${money(cap)}`;
  return cap > 0 ? gauge({ max: cap, high: cap * 0.9, value: Math.min(sum, cap) }, text) : text;
}
