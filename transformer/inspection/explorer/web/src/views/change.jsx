// Change the model and see: heads set to zero, scaled, or taken from another text. And other texts, typed here.
import { useEffect, useState } from "preact/hooks";
import { number, percent } from "../format.js";
import { askIntervention } from "../server.js";
import { distribution, logitsAt } from "../sampling.js";
import { named } from "../tokens.js";
import { ShareBar } from "../parts/bars.jsx";
import { Check, Pick, Slider } from "../parts/controls.jsx";
import { Section, warning } from "../parts/section.jsx";
import { Token } from "../parts/token.jsx";

const PAUSE = 150; // milliseconds after the last change before the model is asked
const ROWS = 12;
const LEAST = 0.00005; // nats that four decimals show

export function ChangeView({ page }) {
  const { served } = page.state.data;
  return (
    <Section
      wide
      id="change"
      title="Change it and see"
      caption={`Take a head away, turn it up or down, or give it what it saw in another text: what is then ${page.predicts ? "predicted" : "read out"} shows what the head is for.`}
      warned={warning(page)}
    >
      {served ? (
        <Bench key={JSON.stringify([page.state.text, asIn(page.text)])} page={page} served={served} />
      ) : (
        <Offline />
      )}
    </Section>
  );
}

const Offline = () => (
  <div class="missing">
    <p>This page holds what the model computed; to change it, the model itself must run. Start it beside the page:</p>
    <pre tabIndex={0}>python -m experiments.explore --workdir=DIR --text=TEXT --serve</pre>
    <p>The page that it opens can remove, scale and swap heads, and take other texts.</p>
  </div>
);

/** The patches chosen so far, each a line, and the prediction before and after. */
function Bench({ page, served }) {
  const { state, text, attention } = page;
  const [patches, setPatches] = useState([]);
  const [{ result, trouble, busy }, setAnswer] = useState({});
  const [everyPosition, setEveryPosition] = useState(true);
  const [everyHead, setEveryHead] = useState(false);
  useEffect(() => {
    if (!patches.length) return setAnswer({});
    let current = true;
    setAnswer((answer) => ({ ...answer, busy: true }));
    const timer = setTimeout(() => {
      askIntervention(served, text, patches, page.readAt).then(
        (found) => current && setAnswer({ result: found }),
        (error) => current && setAnswer({ trouble: error.message }),
      );
    }, PAUSE);
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [patches, page.readAt, text]);
  const add = (action) => {
    const position = everyPosition ? null : page.query;
    const spot = { attention: attention.name, layer: state.layer, head: everyHead ? null : state.head, position };
    const extra =
      action === "scale"
        ? { value: 2 }
        : action === "patch"
          ? asIn(state.texts[(state.text + 1) % state.texts.length])
          : {};
    const others = patches.filter((patch) => !samePlace(patch, spot));
    setPatches([...others, { ...spot, action, ...extra }]);
  };
  const replace = (index, patch) => setPatches(patches.map((old, place) => (place === index ? patch : old)));
  return (
    <>
      <div class="controls">
        <span class="label">
          layer {state.layer}, {everyHead ? "every head" : `head ${state.head}`}:
        </span>
        <button type="button" onClick={() => add("zero")}>
          set to zero
        </button>
        <button type="button" onClick={() => add("scale")}>
          scale
        </button>
        <button type="button" onClick={() => add("patch")}>
          take from another text
        </button>
        <Check label="every head of the layer" checked={everyHead} onChange={setEveryHead} />
        <Check label="at every token, not only the query" checked={everyPosition} onChange={setEveryPosition} />
      </div>
      <ul class="patches" aria-label="changes made">
        {patches.map((patch, index) => (
          <Patch
            key={`${patch.attention}/${patch.layer}/${patch.head}/${patch.position}`}
            {...{ page, patch }}
            onChange={(next) => replace(index, next)}
            onRemove={() => setPatches(patches.filter((_, place) => place !== index))}
          />
        ))}
        {!patches.length && (
          <li class="soft">No change yet: choose a head anywhere on the page, then a button above.</li>
        )}
      </ul>
      <p class="pair" role="status">
        {trouble ? (
          <span class="trouble">{trouble}</span>
        ) : busy ? (
          "asking the model …"
        ) : result ? (
          moved(page, result.kl)
        ) : (
          ""
        )}
      </p>
      <p class="pair">
        The {page.output} {page.place}{" "}
        <Token token={text.sides[text.next.side].tokens[page.readAt]} position={page.readAt} role="query" />
      </p>
      <Result rows={result ? pairs(result) : before(page)} stale={busy} />
    </>
  );
}

const samePlace = (a, b) => ["attention", "layer", "head", "position"].every((name) => a[name] === b[name]);

function moved({ output }, kl) {
  if (kl < LEAST) return `The ${output} did not move.`;
  return `The ${output} moved by ${number(kl, 4)} nats (KL divergence from before to after).`;
}

/** The fields of a patch that name the text to take a head from. */
const asIn = ({ text, source }) => (source === undefined ? { other: text } : { other: text, other_source: source });

function Patch({ page, patch, onChange, onRemove }) {
  const { texts } = page.state;
  const { rows } = page.text.attentions.find(({ name }) => name === patch.attention);
  return (
    <li class="patch">
      <span class="patch-place">
        {patch.attention} {patch.layer}.{patch.head ?? "*"}{" "}
        {patch.position === null ? (
          "everywhere"
        ) : (
          <>
            at <Token token={rows[patch.position]} position={patch.position} />
          </>
        )}
      </span>
      {patch.action === "zero" && <span>set to zero</span>}
      {patch.action === "scale" && (
        <Slider
          label="times"
          value={patch.value}
          least={-2}
          most={4}
          step={0.1}
          onChange={(value) => onChange({ ...patch, value })}
          shown=""
        />
      )}
      {patch.action === "patch" && texts.length > 1 && <OtherOfPage {...{ texts, patch, onChange }} />}
      {patch.action === "patch" && texts.length === 1 && <OtherTyped {...{ patch, onChange }} />}
      <button type="button" class="remove" aria-label="take this change back" onClick={onRemove}>
        ×
      </button>
    </li>
  );
}

function OtherOfPage({ texts, patch, onChange }) {
  const options = texts.map((_, index) => ({ value: index, label: `text ${index + 1}` }));
  const chosen = texts.findIndex(({ text, source }) => text === patch.other && source === patch.other_source);
  if (chosen < 0) options.unshift({ value: chosen, label: "a text that was here before" });
  return (
    <Pick
      label="as in"
      value={chosen}
      options={options}
      onChange={(index) => texts[index] && onChange({ ...patch, ...asIn(texts[index]) })}
    />
  );
}

const OtherTyped = ({ patch, onChange }) => (
  <label class="other-text">
    as in{" "}
    <input
      type="text"
      value={patch.other}
      onChange={(event) => onChange({ ...patch, other: event.currentTarget.value })}
    />
  </label>
);

/** Both predictions, token by token, in a table whose size does not depend on the answer. */
function Result({ rows, stale }) {
  const most = Math.max(0.001, ...rows.flatMap(({ before, after }) => [before, after ?? 0]));
  return (
    <div class="table-scroll" tabIndex={0} role="group" aria-label="prediction before and after, scrolls">
      <table class={`bars result ${stale ? "stale" : ""}`}>
        <colgroup>
          <col class="name" />
          <col />
          <col class="number" />
          <col class="number" />
        </colgroup>
        <thead>
          <tr>
            <th scope="col">token</th>
            <th scope="col">after the change (before: outlined)</th>
            <th scope="col" class="figure">
              before
            </th>
            <th scope="col" class="figure">
              after
            </th>
          </tr>
        </thead>
        <tbody>
          {Array.from({ length: ROWS + 1 }, (_, place) => rows[place]).map((row) => (
            <tr>
              <th scope="row">
                {row ? row.token ? <Token token={row.token} /> : "all others" : "\u00a0"}
              </th>
              <td class="bar">
                {row && (
                  <ShareBar share={row.after ?? 0} before={row.before} most={most} tone={row.token ? "weight" : "rest"} />
                )}
              </td>
              <td class="figure">{row && percent(row.before)}</td>
              <td class="figure">{row && row.after !== null && percent(row.after)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** What the page itself knows of the prediction, before any change. */
function before({ text, readAt, named: tokenOf }) {
  const logits = logitsAt(text.next, readAt);
  const { before: shares } = distribution(logits, { temperature: 1, topK: Infinity, topP: 1 });
  const listed = shares.subarray(0, ROWS);
  const rows = Array.from(listed, (share, rank) => ({ token: tokenOf(logits.ids[rank]), before: share, after: null }));
  const rest = 1 - listed.reduce((sum, share) => sum + share, 0);
  return [...rows, { token: null, before: Math.max(0, rest), after: null }];
}

function pairs({ before, after, names, rest_before: restBefore, rest_after: restAfter }) {
  const later = new Map(after.ids.map((id, place) => [id, after.probabilities[place]]));
  const rows = before.ids.map((id, place) => ({
    token: named(names, id),
    before: before.probabilities[place],
    after: later.get(id) ?? 0,
  }));
  return [...rows.slice(0, ROWS), { token: null, before: restBefore, after: restAfter }];
}
