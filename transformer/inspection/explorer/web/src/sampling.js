// From logits to probabilities over the whole vocabulary, cut by top-k and then top-p as in ops/sampling.py.

const WIDEST = 0.5; // of a spread: what is more comes from rounding, where the rest is next to nothing

/**
 * The logits at one position, likeliest first: {ids, logits, tail, spread}, where tail lists [count, mean logit] of the
 * tokens that the page holds no logit of. Either from {all}, the logits of the whole vocabulary, or from the likeliest
 * and the log of the sum of all exponentials.
 *
 * A sum of exponentials is more than its count times that of the mean, by e^(variance / 2) for normal logits; `spread`
 * is the exponent that makes the sum right at temperature 1. At a higher temperature T it is spread / T^2; below 1,
 * where the tail hardly counts, it is left as it is.
 */
export function ranked({ all, ids, logits, tail, logSumExp }) {
  if (all) {
    const order = Uint32Array.from(all, (_, id) => id).sort((a, b) => all[b] - all[a] || a - b);
    return { ids: order, logits: Float64Array.from(order, (id) => all[id]), tail: [], spread: 0 };
  }
  const sum = (pairs) => pairs.reduce((total, [count, logit]) => total + count * Math.exp(logit - logSumExp), 0);
  const rest = 1 - sum(Array.from(logits, (logit) => [1, logit]));
  const present = tail.filter(([count]) => count > 0);
  const spread = rest > 0 && present.length ? Math.log(rest / sum(present)) : 0;
  return { ids, logits, tail: present, spread: Math.max(0, Math.min(WIDEST, spread)) };
}

/** The logits at a position of a text's `next`, ranked. */
export function logitsAt(next, position) {
  const all = next.all?.[position]?.data;
  if (all) return ranked({ all });
  const { ids, logits, tail, log_sum_exp: logSumExp } = next.top;
  const place = next.positions.indexOf(position);
  const row = ({ shape: [, width], data }) => data.subarray(place * width, (place + 1) * width);
  const [, bins] = tail.shape;
  const pairs = Array.from({ length: bins }, (_, bin) =>
    tail.data.subarray((place * bins + bin) * 2, (place * bins + bin) * 2 + 2),
  );
  return ranked({ ids: row(ids), logits: row(logits), tail: pairs, logSumExp: logSumExp.data[place] });
}

/**
 * Probabilities of `ranked` tokens after temperature, before the cut (`before`) and after it (`after`), and of the
 * rest. Temperature 0 is greedy. `exact` says whether every token's own logit was there.
 */
export function distribution({ logits, tail, spread }, { temperature, topK, topP }) {
  if (temperature === 0) return greedy(logits, tail);
  const peak = logits[0];
  const weight = (logit) => Math.exp((logit - peak) / temperature);
  const weights = Float64Array.from(logits, weight);
  const lift = Math.exp(spread / Math.max(1, temperature) ** 2);
  const rest = lift * tail.reduce((sum, [count, logit]) => sum + count * weight(logit), 0);
  const total = weights.reduce((sum, value) => sum + value, rest);
  const before = weights.map((value) => value / total);
  const kept = cut(before, topK, topP);
  const left = before.subarray(0, kept).reduce((sum, value) => sum + value, 0);
  // Beyond the listed tokens lies a tail that can only be kept whole.
  const keepsTail = kept === before.length && topK > kept && topP >= 1;
  const afterTotal = keepsTail ? 1 : left;
  return {
    before,
    after: before.map((value, rank) => (rank < kept ? value / afterTotal : 0)),
    restBefore: rest / total,
    restAfter: keepsTail ? rest / total : 0,
    kept: keepsTail ? kept + tail.reduce((sum, [count]) => sum + count, 0) : kept,
    exact: tail.length === 0,
  };
}

function greedy(logits, tail) {
  const first = Float64Array.from(logits, (_, rank) => (rank === 0 ? 1 : 0));
  return { before: first, after: first, restBefore: 0, restAfter: 0, kept: 1, exact: tail.length === 0 };
}

/** How many are kept: the k likeliest, then the fewest whose renormalised probability reaches p. */
function cut(before, topK, topP) {
  const limit = Math.min(topK, before.length);
  if (topP >= 1) return limit;
  const whole = topK <= before.length ? before.subarray(0, limit).reduce((sum, value) => sum + value, 0) : 1;
  let reached = 0;
  for (let rank = 0; rank < limit; rank++) {
    reached += before[rank] / whole;
    if (reached >= topP) return rank + 1;
  }
  return limit;
}
