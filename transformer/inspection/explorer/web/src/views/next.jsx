// What comes next: probabilities over the whole vocabulary, as sampling would change and cut them.
import { useMemo, useState } from "preact/hooks";
import { number, percent, whole } from "../format.js";
import { distribution, logitsAt } from "../sampling.js";
import { ShareBar } from "../parts/bars.jsx";
import { Slider } from "../parts/controls.jsx";
import { Section, warning } from "../parts/section.jsx";
import { Token } from "../parts/token.jsx";

const SHOWN = 12;

export function NextView({ page }) {
  const { next } = page.text;
  const [settings, setSettings] = useState({ temperature: 1, topK: null, topP: 1 });
  const position = page.readAt;
  const logits = useMemo(() => logitsAt(next, position), [next, position]);
  const most = logits.tail.length ? logits.ids.length + 1 : logits.ids.length;
  const topK = Math.min(settings.topK ?? most, most);
  const result = distribution(logits, { ...settings, topK: topK === most ? Infinity : topK });
  const set = (name) => (value) => setSettings({ ...settings, [name]: value });
  const tokens = page.text.sides[next.side].tokens;
  return (
    <Section id="next" {...about(page)} warned={warning(page)}>
      <p class="pair">
        {page.place} <Token token={tokens[position]} position={position} role="query" />
      </p>
      <div class="sliders">
        <Slider
          label="temperature"
          value={settings.temperature}
          least={0}
          most={3}
          step={0.05}
          onChange={set("temperature")}
          shown={settings.temperature === 0 ? "greedy" : ""}
        />
        <Slider
          label="top-k"
          value={topK}
          least={1}
          most={most}
          step={1}
          onChange={(value) => set("topK")(value === most ? null : Math.round(value))}
          shown={topK === most ? "off" : ""}
        />
        <Slider
          label="top-p"
          value={settings.topP}
          least={0.01}
          most={1}
          step={0.01}
          onChange={set("topP")}
          shown={settings.topP === 1 ? "off" : ""}
        />
      </div>
      <Bars {...{ page, logits, result, settings }} />
      <p class="hint steady">
        {whole(result.kept)} {result.kept === 1 ? "token" : "tokens"} can be drawn.{" "}
        {result.exact ? "" : "≈ beyond the listed tokens the page holds sums of similar logits."}
      </p>
    </Section>
  );
}

/** An encoder guesses what stands in each place, not what follows it; a model may guess nothing at all. */
function about({ predicts, text, state }) {
  const each = `each of ${whole(state.data.model.vocab)}`;
  if (!predicts)
    return { title: "What its vector is read as", caption: `The last vector of this token as a share for ${each} tokens.` };
  const fills = text.next.side === "encoder";
  const guess = fills ? "what stands in its place" : "the next token";
  return {
    title: fills ? "What could stand here" : "What comes next",
    caption: `After the last layer every token's vector has become a guess at ${guess}: a probability for ${each}.`,
  };
}

function Bars({ page, logits, result, settings }) {
  const shown = Math.min(SHOWN, logits.ids.length);
  const sum = (values) => values.subarray(shown).reduce((total, value) => total + value, 0);
  const rest = { before: sum(result.before) + result.restBefore, after: sum(result.after) + result.restAfter };
  const most = Math.max(result.before[0], result.after[0], rest.before, rest.after);
  const others = page.state.data.model.vocab - shown;
  return (
    <table class="bars">
      <colgroup>
        <col class="name" />
        <col />
        <col class="number" />
        <col class="number" />
      </colgroup>
      <thead>
        <tr>
          <th scope="col">token</th>
          <th scope="col">
            {settings.temperature !== 1 || result.kept < page.state.data.model.vocab
              ? "as drawn (outlined: the model's own)"
              : ""}
          </th>
          <th scope="col" class="figure">
            {page.predicts ? "probability" : "share"}
          </th>
          <th scope="col" class="figure">
            logit
          </th>
        </tr>
      </thead>
      <tbody>
        {Array.from({ length: shown }, (_, rank) => (
          <tr class={result.after[rank] === 0 ? "cut" : ""} data-id={logits.ids[rank]}>
            <th scope="row">
              <Token token={page.named(logits.ids[rank])} />
            </th>
            <td class="bar">
              <ShareBar share={result.after[rank]} before={result.before[rank]} most={most} />
            </td>
            <td class="figure">{percent(result.after[rank])}</td>
            <td class="figure soft">{number(logits.logits[rank], 2)}</td>
          </tr>
        ))}
        {others > 0 && (
          <tr class="rest">
            <th scope="row">{whole(others)} others</th>
            <td class="bar">
              <ShareBar share={rest.after} before={rest.before} most={most} tone="rest" />
            </td>
            <td class="figure">{percent(rest.after)}</td>
            <td />
          </tr>
        )}
      </tbody>
    </table>
  );
}
