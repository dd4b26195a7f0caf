// Figures as people read them.

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB"];
const AGES = [
  [86400, "d"],
  [3600, "h"],
  [60, "min"],
  [1, "s"],
];

export function size(bytes) {
  let unit = 0;
  while (bytes >= 999.5 && unit < SIZES.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${bytes.toFixed(unit && bytes < 99.95 ? 1 : 0)} ${SIZES[unit]}`;
}

export function milliseconds(value) {
  return `${value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0)} ms`;
}

export function percent(fraction) {
  return `${Math.round(fraction * 100)} %`;
}

export function age(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  for (const [length, unit] of AGES) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return "now";
}

export function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour12: false });
}

export function rate(value) {
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString();
}

/** An amount of whatever currency, with at least three figures: 0, 1.20, 0.00042. */
export function money(amount) {
  if (amount === 0) return "0";
  return amount >= 0.995 ? amount.toFixed(2) : String(Number(amount.toPrecision(3)));
}

const CPU = ["CPUExecutionProvider", "CPU", "XNNPACK"];

/** Where a model runs: "100 % QNN (97 of 97 nodes)", "CPU only", "CUDA, not proven". */
export function runsOn({ placement, providers: names }) {
  if (!placement) return providers(names);
  if (placement.accelerated <= 0) return "CPU only";
  const counts = Object.entries(placement.nodes);
  const fast = (counts.length ? counts.map(([name]) => name) : names).filter((name) => !CPU.includes(name));
  const where = providers(fast) || "accelerator";
  if (placement.proof === "listed") return `${where}, not proven`;
  // Rounded down, so that 100 % is all of it.
  const share = `${Math.floor(placement.accelerated * 100 + 1e-9)} % ${where}`;
  if (!counts.length) return placement.proof === "timing" ? `${share} (by timing)` : share;
  const sum = (entries) => entries.reduce((total, [, count]) => total + count, 0);
  return `${share} (${sum(counts.filter(([name]) => fast.includes(name)))} of ${sum(counts)} nodes)`;
}

/** Execution providers without the word that they all end in: CUDA, CPU. */
export function providers(names) {
  return names.map((name) => name.replace(/ExecutionProvider$/, "")).join(", ");
}
