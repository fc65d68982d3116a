// The attention pattern as explainers draw it: every query asks every key, and the area of a dot is the answer.
import { useState } from "preact/hooks";
import { number, signed, throughMask } from "../format.js";
import { plain } from "../tokens.js";
import { Check, Choice } from "../parts/controls.jsx";
import { Grid } from "../parts/grid.jsx";
import { largestOf, radius } from "../parts/dots.jsx";
import { Missing, OneOf, Section } from "../parts/section.jsx";
import { Token } from "../parts/token.jsx";

const ALL_STEPS = [
  ["raw", "q · k"],
  ["scaled", "scaled"],
  ["masked", "masked"],
  ["softmax", "softmax"],
];

const SAYS = {
  raw: "How well each key answers each query: the dot product, positive (filled) or negative (ring).",
  scaled: "Divided by the root of the head's width, so that sums over more dimensions do not drown the rest.",
  capped: "Squeezed into a fixed range, so that no score runs away.",
  biased: "With what the distance between the two tokens adds.",
};

export function PatternView({ page }) {
  const { state, attention, select, announce, theme } = page;
  const [pointed, setHovered] = useState(null);
  const inside = pointed && pointed.query < attention.rows.length && pointed.key < attention.columns.length;
  const hovered = inside ? pointed : null;
  const [whole, setWhole] = useState(false);
  const { list, exact } = attention.steps(state.layer, state.head);
  const step = list.find(({ id }) => id === state.step) ?? list.at(-1);
  const kind = step.id === "softmax" ? "weight" : "score";
  const selected = { query: page.query, key: state.key };
  const move = (pair, byKey) => {
    select(pair);
    if (byKey) announce(sentence(attention, state.layer, list, exact, pair));
  };
  const turn = (x, y) => {
    const layers = attention.layers;
    const bound = (value, length) => Math.max(0, Math.min(length - 1, value));
    const head = bound(state.head + x, attention.heads);
    const layer = layers[bound(layers.indexOf(state.layer) + y, layers.length)];
    select({ head, layer });
    announce(`layer ${layer}, head ${head}`);
  };
  return (
    <Section
      id="pattern"
      title="The attention pattern"
      caption="Each query asks every key how relevant it is; the area of a dot is the answer."
    >
      <div class="controls">
        <Stepper list={list} exact={exact} value={step.id} onChange={(id) => select({ step: id })} />
        <Choice
          label="queries run"
          options={[
            { value: "columns", label: "across", title: "one column for each query, as explainers draw it" },
            { value: "rows", label: "down", title: "one row for each query, as papers print it" },
          ]}
          value={state.asColumns ? "columns" : "rows"}
          onChange={(value) => select({ asColumns: value === "columns" })}
        />
      </div>
      <OneOf texts={list.map(({ id }) => explain(page, id))} shown={list.indexOf(step)} />
      <Grid
        rows={attention.rows}
        columns={attention.columns}
        values={step.values}
        mask={attention.mask(state.layer)}
        label={`attention of layer ${state.layer}, head ${state.head}, ${step.label}`}
        hint="pattern-hint"
        {...{ kind, whole, selected, hovered, theme }}
        asColumns={state.asColumns}
        onSelect={move}
        onHover={setHovered}
        onKey={turn}
      />
      <Readout {...{ attention, list, exact }} layer={state.layer} pair={hovered ?? selected} />
      <div class="foot">
        <Legend values={step.values} kind={kind} />
        <Check label="smaller dots, more of the grid" checked={whole} onChange={setWhole} />
      </div>
      <p id="pattern-hint" class="hint">
        Arrow keys choose a pair; with Shift they turn to the next head and layer.
      </p>
      <Source page={page} exact={exact} />
    </Section>
  );
}

function explain({ state, attention }, step) {
  if (step === "softmax")
    return (
      <>
        Each query's scores made into weights between 0 and 1. <b>{state.asColumns ? "Columns" : "Rows"} sum to 1.</b>
      </>
    );
  if (step !== "masked") return SAYS[step];
  const causal = attention.queries === attention.keys && state.data.model.stacks[attention.stack].causal;
  const why = causal
    ? "no later token may help to predict an earlier one, nor one outside the layer's window."
    : "here that is only what lies outside the text, or outside the layer's window.";
  return `Keys that a query may not see are set to −∞: ${why}`;
}

function Stepper({ list, exact, value, onChange }) {
  const options = exact
    ? list.map(({ id, label }) => ({ value: id, label }))
    : ALL_STEPS.map(([id, label]) => ({ value: id, label, disabled: id !== "softmax" }));
  return <Choice label="step" options={options} value={value} onChange={onChange} />;
}

/** The numbers of one pair, at every step, in room for the longest. */
function Readout({ attention, layer, list, exact, pair: { query, key } }) {
  const cell = query * attention.columns.length + key;
  const seen = attention.mask(layer)[cell];
  return (
    <div class="readout">
      <p class="readout-pair">
        <Token token={attention.rows[query]} position={query} role="query" />
        <span class="soft">asks</span>
        <Token token={attention.columns[key]} position={key} role="key" />
      </p>
      <dl class="readout-numbers">
        {list.map(({ id, label, values }) => (
          <div>
            <dt>{id === "softmax" ? "weight" : label}</dt>
            <dd>{shown(id, values[cell], seen, exact, 3)}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

/** What a step comes to: scores as they are, of the mask whether it lets them through, then the weight. */
function shown(step, value, seen, exact, decimals) {
  if (step === "softmax") return exact ? number(value, 4) : `≈ ${number(value, 3)}`;
  return step === "masked" ? throughMask(seen) : signed(value, decimals);
}

/** The same numbers as a sentence, for those who hear the page. */
function sentence(attention, layer, list, exact, { query, key }) {
  const cell = query * attention.columns.length + key;
  const seen = attention.mask(layer)[cell];
  const numbers = list.map(
    ({ id, label, values }) => `${id === "softmax" ? "weight" : label} ${shown(id, values[cell], seen, exact, 2)}`,
  );
  return `query ${plain(attention.rows[query])} ${query}, key ${plain(attention.columns[key])} ${key}: ${numbers.join(", ")}`;
}

function Legend({ values, kind }) {
  const largest = largestOf(values, kind);
  const size = 30;
  const shown = kind === "weight" ? [1, 0.5, 0.25, 0.1, 0.01] : [largest, largest / 4, -largest / 4, -largest];
  return (
    <p class="legend" aria-hidden="true">
      {shown.map((value) => (
        <span>
          <svg width={size} height={size}>
            <circle
              class={kind === "weight" ? "weight" : value < 0 ? "minus" : "plus"}
              cx={size / 2}
              cy={size / 2}
              r={radius(value, largest, size)}
            />
          </svg>
          {kind === "weight" ? value : signed(value, 2)}
        </span>
      ))}
    </p>
  );
}

/** Where the numbers come from: one line, whatever it says. */
function Source({ page, exact }) {
  if (exact) return <p class="hint">Computed here from this layer's queries and keys.</p>;
  return <Missing>≈ This layer's weights are kept in 255ths. {page.detailNote}</Missing>;
}
