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

/** Execution providers without the word that they all end in: CUDA, CPU. */
export function providers(names) {
  return names.map((name) => name.replace(/ExecutionProvider$/, "")).join(", ");
}
