// The few questions that a served page asks of the model behind it. Without a server there are none.
import { unpack } from "./decode.js";

/** Asks `name` below the page's own path; rejects with the server's one line where it refuses. */
async function ask(served, name, question) {
  let response;
  try {
    response = await fetch(served.base + name, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(question),
    });
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  const answer = await response
    .json()
    .catch(() => ({ error: `the server answered ${response.status} without a reason` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** What the model reads of a text; an encoder-decoder has a source beside it. */
const reading = ({ text, source }) => (source === undefined ? { text } : { text, source });

/** The data of a page about other texts, each {text} or {text, source}. */
export async function askTexts(served, texts) {
  const question = { texts: texts.map(({ text }) => text) };
  if (texts[0].source !== undefined) question.sources = texts.map(({ source }) => source);
  return unpack(await ask(served, "texts", question));
}

/** A layer's queries, keys, values and what follows from them. */
export const askDetail = async (served, text, attention, layer) =>
  unpack(await ask(served, "detail", { ...reading(text), attention, layer }));

/** The prediction at a position before and after patches. */
export const askIntervention = (served, text, patches, position) =>
  ask(served, "intervene", { ...reading(text), patches, position });
