import { titles } from "../attention.js";
import { weight as written } from "../format.js";
import { Choice, Pick, Spin } from "./controls.jsx";
import { Token } from "./token.jsx";

/** What all views are about, in one line: text, attention, layer, head, query and key. */
export function SelectionBar({ page }) {
  const { state, text, attention, select, query } = page;
  const texts = state.texts.map((_, index) => ({ value: index, label: String(index + 1) }));
  const names = text.attentions.map(({ name }) => ({ value: name, label: titles[name] ?? name }));
  const steps = attention.steps(state.layer, state.head);
  const weight = steps.list.at(-1).values[query * attention.columns.length + state.key];
  return (
    <div class="selection" role="region" aria-label="selection">
      {texts.length > 1 && (
        <Choice label="text" options={texts} value={state.text} onChange={(chosen) => select({ text: chosen })} />
      )}
      {names.length > 1 && (
        <Pick
          label="attention"
          options={names}
          value={attention.name}
          onChange={(name) => select({ attention: name })}
        />
      )}
      <Spin label="layer" options={attention.layers} value={state.layer} onChange={(layer) => select({ layer })} />
      <Spin
        label="head"
        options={Array.from({ length: attention.heads }, (_, head) => head)}
        value={state.head}
        onChange={(head) => select({ head })}
      />
      <p class="selected-pair">
        <span class="selected-head soft">
          {state.layer}.{state.head}
        </span>
        <Token token={attention.rows[query]} position={query} role="query" />
        <span class="soft" aria-label="asks">
          →
        </span>
        <Token token={attention.columns[state.key]} position={state.key} role="key" />
        <span class="figure">
          {steps.exact ? "" : "≈ "}
          {written(weight, 3)}
        </span>
      </p>
    </div>
  );
}
