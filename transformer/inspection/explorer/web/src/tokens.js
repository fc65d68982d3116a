// Tokens as text that can be seen: spaces, controls and what has no width become marks, never markup.

const MARKS = { " ": "·", "\n": "⏎", "\t": "⇥" };
// The signs that stand for others are escaped themselves, so that no token can pose as another.
const HIDDEN =
  /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}·⏎⇥\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\ufe00-\ufe0f]/u;
const COMBINING = /\p{M}/u;

/**
 * The pieces of a token: [{text, mark}], where a mark stands for what cannot be seen.
 * A token without text, or one whose bytes are not whole UTF-8, is one mark.
 */
export function pieces(token) {
  if (token.hex) return [{ text: `‹${token.hex.match(/../g).join(" ")}›`, mark: "bytes that are not whole UTF-8" }];
  if (!token.text) return [{ text: `‹id ${token.id}›`, mark: "a token without text" }];
  const out = [];
  for (const character of token.text) {
    const mark = HIDDEN.test(character);
    const shown = mark ? (MARKS[character] ?? escape(character)) : combined(character, out.length);
    const last = out.at(-1);
    if (last && Boolean(last.mark) === mark) last.text += shown;
    else out.push({ text: shown, mark: mark ? "not visible in print" : null });
  }
  return out;
}

const escape = (character) => {
  const code = character.codePointAt(0).toString(16);
  return code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`;
};

/** A combining mark that opens a piece has nothing to stand on: a dotted circle carries it. */
const combined = (character, before) => (before === 0 && COMBINING.test(character) ? `◌${character}` : character);

/** The token of an id, by a table from ids to texts. */
export const named = (names, id) => ({ id, text: names[id] ?? "" });

/** The pieces as one string, isolated from the direction of what surrounds it: for labels and titles. */
export function plain(token) {
  const text = pieces(token)
    .map((piece) => piece.text)
    .join("");
  return /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u.test(text)
    ? `\u2068${text}\u2069`
    : text;
}

/** A whole text in a line, its spaces left as they are. */
export const line = (text) =>
  text
    .split(" ")
    .map((part) => part && plain({ text: part }))
    .join(" ");

/** What a pointer shows: the token, its place, its id and the code points that it is made of. */
export function describe(token, position) {
  const points = token.hex
    ? ""
    : [...token.text]
        .slice(0, 12)
        .map((character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`);
  return `${plain(token)}  position ${position}, id ${token.id}${points.length ? `\n${points.join(" ")}` : ""}`;
}
