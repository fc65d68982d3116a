// Change the model and see: heads set to zero, scaled, or taken from another text. And other texts, typed here.
import { useEffect, useState } from "preact/hooks";
import { number, percent } from "../format.js";
import { askIntervention } from "../server.js";
import { named } from "../tokens.js";
import { ShareBar } from "../parts/bars.jsx";
import { Check, Pick, Slider } from "../parts/controls.jsx";
import { Section } from "../parts/section.jsx";
import { Token } from "../parts/token.jsx";

const PAUSE = 150; // milliseconds after the last change before the model is asked
const ROWS = 12;

export function ChangeView({ page }) {
  const { served } = page.state.data;
  return (
    <Section
      wide
      id="change"
      title="Change it and see"
      caption="Take a head away, turn it up or down, or give it what it saw in another text: what is then predicted shows what the head is for."
    >
      {served ? <Bench key={page.text.text} page={page} served={served} /> : <Offline />}
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
  }, [patches, page.readAt]);
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
          `The prediction moved by ${number(result.kl, 4)} nats (KL divergence from before to after).`
        ) : (
          ""
        )}
      </p>
      <p class="pair">
        The prediction {text.next.side === "encoder" ? "in place of" : "after"}{" "}
        <Token token={text.sides[text.next.side].tokens[page.readAt]} position={page.readAt} role="query" />
      </p>
      <Result result={result} stale={busy} />
    </>
  );
}

const samePlace = (a, b) => ["attention", "layer", "head", "position"].every((name) => a[name] === b[name]);

/** The fields of a patch that name the text to take a head from. */
const asIn = ({ text, source }) => (source === undefined ? { other: text } : { other: text, other_source: source });

function Patch({ page, patch, onChange, onRemove }) {
  const { texts } = page.state;
  return (
    <li class="patch">
      <span class="patch-place">
        {patch.attention} {patch.layer}.{patch.head ?? "*"}{" "}
        {patch.position === null ? (
          "everywhere"
        ) : (
          <>
            at <Token token={page.attention.rows[patch.position]} position={patch.position} />
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
  const chosen = texts.findIndex(({ text }) => text === patch.other);
  return (
    <Pick
      label="as in"
      value={chosen}
      options={options}
      onChange={(index) => onChange({ ...patch, ...asIn(texts[index]) })}
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
function Result({ result, stale }) {
  const rows = result ? pairs(result) : [];
  const most = Math.max(0.001, ...rows.flatMap(({ before, after }) => [before, after]));
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
                {row ? row.token ? <Token token={row.token} /> : "all others" : <span class="soft">–</span>}
              </th>
              <td class="bar">
                {row && (
                  <ShareBar share={row.after} before={row.before} most={most} tone={row.token ? "weight" : "rest"} />
                )}
              </td>
              <td class="figure">{row && percent(row.before)}</td>
              <td class="figure">{row && percent(row.after)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
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
