// The arithmetic of attention, in float64, one head at a time: matrices are [T, S], row by row.

/** q · k of every pair: query {shape [T, H, K]}, key {shape [S, G, K]}. */
export function products(query, key, head, group) {
  const [length, heads, width] = query.shape;
  const [keys, groups] = key.shape;
  const out = new Float64Array(length * keys);
  for (let t = 0; t < length; t++) {
    const from = (t * heads + head) * width;
    for (let s = 0; s < keys; s++) {
      const other = (s * groups + group) * width;
      let sum = 0;
      for (let k = 0; k < width; k++) sum += query.data[from + k] * key.data[other + k];
      out[t * keys + s] = sum;
    }
  }
  return out;
}

export const scaled = (scores, scale) => scores.map((score) => score * scale);

/** c tanh(score / c). */
export const capped = (scores, cap) => scores.map((score) => cap * Math.tanh(score / cap));

export const biased = (scores, bias, head) =>
  scores.map((score, index) => score + bias.data[head * scores.length + index]);

/** −∞ where the mask lets nothing through. */
export const masked = (scores, visible) => scores.map((score, index) => (visible[index] ? score : -Infinity));

/** Softmax over each row of so many keys; zeros where all of it is −∞. */
export function softmax(scores, keys) {
  const out = new Float64Array(scores.length);
  for (let start = 0; start < scores.length; start += keys) {
    let peak = -Infinity;
    for (let s = start; s < start + keys; s++) if (scores[s] > peak) peak = scores[s];
    if (peak === -Infinity) continue;
    let total = 0;
    for (let s = start; s < start + keys; s++) total += out[s] = Math.exp(scores[s] - peak);
    for (let s = start; s < start + keys; s++) out[s] /= total;
  }
  return out;
}

/** The largest absolute value among the finite ones. */
export function reach(values) {
  let out = 0;
  for (const value of values) {
    const size = Math.abs(value);
    if (size > out && size < Infinity) out = size;
  }
  return out;
}

/** The indices of the largest values, largest first, those below `least` left out. */
export function largest(values, count, least = -Infinity) {
  const indices = [];
  for (let index = 0; index < values.length; index++) if (values[index] >= least) indices.push(index);
  return indices.sort((a, b) => values[b] - values[a]).slice(0, count);
}
