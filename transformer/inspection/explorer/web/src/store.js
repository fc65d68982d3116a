// The selection that every view shares, and how it moves. States are plain objects that are replaced, never changed.
import { prepare } from "./attention.js";
import { largest } from "./numerics.js";

const RUN = 16; // tokens that a shared word and its surroundings may have

/**
 * The state of a page: `data` as unpacked, `texts` made ready, and the selection: which text, attention, layer and
 * head, the query token and the key token, the step of the pattern, and in each text the word that is compared; what
 * texts do not share is compared once it was chosen (`compared`).
 */
export function initial(data) {
  const texts = data.texts.map(prepare);
  const names = texts[0].attentions.map((attention) => attention.name);
  const attention = names.includes("decoder") ? "decoder" : names[0];
  const found = Object.keys(texts[0].sides).map((side) => [side, commonWord(texts, side)]);
  const words = Object.fromEntries(found.map(([side, { places }]) => [side, places]));
  const compared = Object.fromEntries(found.map(([side, { shared }]) => [side, texts.map(() => shared)]));
  const state = { data, texts, text: 0, attention, step: "softmax", asColumns: true, words, compared, version: 0 };
  return settle({ ...state, ...striking(current(state)) });
}

/** The state of other data, with as much of the selection as there is in them. */
export function replaced(state, data) {
  const { attention, layer, head, step, asColumns } = state;
  const text = Math.min(state.text, data.texts.length - 1);
  return change(initial(data), { text, attention, layer, head, step, asColumns });
}

/** The attention that is selected. */
export function current(state) {
  const { attentions } = state.texts[state.text];
  return attentions.find((attention) => attention.name === state.attention) ?? attentions[0];
}

/** The query token that is selected: the word of this text on the side of the queries. */
export const queryOf = (state) => state.words[current(state).queries][state.text];

/** The state after a change of some of: text, attention, layer, head, query, key, step, asColumns. */
export function change(state, { query, ...wanted }) {
  const moved = query !== undefined || "text" in wanted || "attention" in wanted;
  const next = { ...state, ...wanted };
  const placed = query === undefined ? next : withWord(next, current(next).queries, next.text, query);
  return settle(placed, "key" in wanted || !moved);
}

/** The state in which another word of a text is compared, which is the query too where it can be. */
export function compare(state, side, text, position) {
  const chosen = state.compared[side].map((old, index) => old || index === text);
  const next = { ...state, compared: { ...state.compared, [side]: chosen } };
  const asks = text === state.text && side === current(state).queries;
  return asks ? change(next, { query: position }) : withWord(next, side, text, position);
}

const withWord = (state, side, text, position) => ({
  ...state,
  words: { ...state.words, [side]: state.words[side].map((old, index) => (index === text ? position : old)) },
});

/** The state in which a layer has detail that came from the server. */
export function withDetail(state, text, attention, layer, { names, ...detail }) {
  attention.addDetail(layer, detail);
  Object.assign(text.next.names, names);
  return { ...state, version: state.version + 1 };
}

/** Everything within the bounds of what is selected; the key follows the query unless it was chosen. */
function settle(state, keepKey = false) {
  const attention = current(state);
  const bound = (value, length) => Math.max(0, Math.min(length - 1, value ?? 0));
  const layer = attention.layers.includes(state.layer) ? state.layer : attention.layers[0];
  const head = bound(state.head, attention.heads);
  const query = bound(queryOf(state), attention.rows.length);
  const key =
    keepKey && state.key < attention.columns.length
      ? bound(state.key, attention.columns.length)
      : strongest(attention, layer, head, query);
  const settled = { ...state, attention: attention.name, layer, head, key };
  return withWord(settled, attention.queries, state.text, query);
}

/** The key that a query attends to most; the first token of a text catches what heads do not use, so it comes last. */
function strongest(attention, layer, head, query) {
  const keys = attention.columns.length;
  const row = attention.weights(layer, head).subarray(query * keys, (query + 1) * keys);
  const [key] = largest(row.subarray(1), 1, 0.02);
  return key === undefined ? 0 : key + 1;
}

/** A layer and head to begin with: with detail, and of the largest effect where that was measured, else the sharpest. */
function striking(attention) {
  let best = { layer: attention.layers[0], head: 0 };
  let most = -Infinity;
  const detailed = attention.layers.filter((layer) => attention.detail[layer]);
  for (const layer of detailed.length ? detailed : attention.layers) {
    for (let head = 0; head < attention.heads; head++) {
      const effect = attention.score("ablation", layer, head) ?? -(attention.score("entropy", layer, head) ?? 0);
      if (effect > most) [best, most] = [{ layer, head }, effect];
    }
  }
  return best;
}

/**
 * In each text the place of the word that they share: of the longest run of tokens that all have, measured in letters,
 * the longest token; of several the last, since a word's last token has seen the others. Else where a text is read out,
 * and nothing is `shared`.
 */
function commonWord(texts, side) {
  const tokens = texts.map((text) => text.sides[side].tokens);
  const none = texts.map((text, index) => (text.next.side === side ? text.position : tokens[index].length - 1));
  if (texts.length === 1) return { places: none, shared: true };
  let best = { letters: 0, starts: none, length: 1 };
  tokens[0].forEach((_, start) => {
    for (let length = 1; length <= RUN && start + length <= tokens[0].length; length++) {
      const run = tokens[0].slice(start, start + length);
      const starts = run.at(-1).special ? [-1] : tokens.map((others) => find(others, run));
      if (starts.includes(-1)) break;
      const letters = run.reduce((sum, token) => sum + lettersOf(token), 0);
      if (letters > best.letters) best = { letters, starts, length };
    }
  });
  if (!best.letters) return { places: none, shared: false };
  const run = tokens[0].slice(best.starts[0], best.starts[0] + best.length);
  const longest = Math.max(...run.map(lettersOf));
  const within = run.findLastIndex((token) => lettersOf(token) === longest);
  return { places: best.starts.map((start) => start + within), shared: true };
}

const lettersOf = (token) => (token.hex ? 0 : (token.text.match(/[\p{L}\p{N}]/gu)?.length ?? 0));

const find = (tokens, run) =>
  tokens.findIndex((_, start) => run.every((token, offset) => tokens[start + offset]?.id === token.id));
