// The page: what is selected, on a bar that stays in sight, and the views of it.
import { useEffect, useState } from "preact/hooks";
import { goTo, useTheme } from "./browser.js";
import { titles } from "./attention.js";
import { change, compare, current, initial, queryOf, replaced, withDetail } from "./store.js";
import { askDetail } from "./server.js";
import { named } from "./tokens.js";
import { Head } from "./parts/head.jsx";
import { SelectionBar } from "./parts/selection.jsx";
import { ArcsView } from "./views/arcs.jsx";
import { ChangeView } from "./views/change.jsx";
import { CompareView } from "./views/compare.jsx";
import { HeadsView } from "./views/heads.jsx";
import { LedgerView } from "./views/ledger.jsx";
import { LensView } from "./views/lens.jsx";
import { NextView } from "./views/next.jsx";
import { PatternView } from "./views/pattern.jsx";
import { ScoreView } from "./views/score.jsx";
import { ValueView } from "./views/value.jsx";

const PLACES = {
  text: "text",
  pattern: "pattern",
  heads: "heads",
  score: "score",
  value: "value",
  next: "next token",
  lens: "layers",
  compare: "compare",
  change: "change",
  ledger: "parameters",
};

export function App({ data }) {
  const [state, setState] = useState(() => initial(data));
  const [spoken, announce] = useState("");
  const [themeChosen, theme, chooseTheme] = useTheme();
  const page = describePage(state, setState, announce, theme);
  page.detailNote = useDetail(page, setState);
  return (
    <>
      <Head page={page} themeChosen={themeChosen} chooseTheme={chooseTheme} />
      <SelectionBar page={page} />
      <Places names={page.predicts ? PLACES : { ...PLACES, next: "read-out" }} />
      <main>
        <ArcsView page={page} />
        <PatternView page={page} />
        <HeadsView page={page} />
        <ScoreView page={page} />
        <ValueView page={page} />
        <NextView page={page} />
        <LensView page={page} />
        <CompareView page={page} />
        <ChangeView page={page} />
        <LedgerView page={page} />
      </main>
      <Limits limits={state.data.limits} />
      <div class="unseen" aria-live="polite">
        {spoken}
      </div>
    </>
  );
}

/** What every view is given: the selection, what it selects, and the ways to move it. */
function describePage(state, setState, announce, theme) {
  const text = state.texts[state.text];
  const attention = current(state);
  return {
    state,
    text,
    attention,
    attentionTitle: titles[attention.name] ?? attention.name,
    query: queryOf(state),
    readAt: text.next.side === attention.queries ? queryOf(state) : text.position, // whose prediction is looked at
    ...readOut(state.data.model, text.next.side),
    theme,
    announce,
    select: (wanted) => setState((now) => change(now, wanted)),
    compare: (side, index, position) => setState((now) => compare(now, side, index, position)),
    replace: (data) => setState((now) => replaced(now, { ...data, served: now.data.served })),
    named: (id) => named(text.next.names, id),
  };
}

/** Whether what is read out was learned, as a guess at tokens, and in a word of which token: of what to speak of it. */
function readOut({ predicts = true }, side) {
  if (!predicts) return { predicts, place: "at", output: "read-out" };
  return { predicts, place: side === "encoder" ? "in place of" : "after", output: "prediction" };
}

/** In a served page a layer's detail comes when the layer is selected. Says how the rest can be had. */
function useDetail({ state, text, attention }, setState) {
  const { served, limits } = state.data;
  const [trouble, setTrouble] = useState(null);
  const missing = !attention.detail[state.layer];
  useEffect(() => {
    if (!served || !missing) return;
    setTrouble(null);
    askDetail(served, text, attention.name, state.layer).then(
      (detail) => setState((now) => withDetail(now, text, attention, state.layer, detail)),
      (error) => setTrouble(error.message),
    );
  }, [attention, state.layer, missing]);
  if (served) return trouble ?? "They are on their way.";
  return limits.find((limit) => limit.includes("--detail")) ?? "";
}

const Places = ({ names }) => (
  <nav class="places" aria-label="parts of this page">
    {Object.entries(names).map(([id, name]) => (
      <button type="button" onClick={() => goTo(id)}>
        {name}
      </button>
    ))}
  </nav>
);

const Limits = ({ limits }) => (
  <footer>
    {limits.length > 0 && <h2>What this page leaves out</h2>}
    <ul>
      {limits.map((limit) => (
        <li>{limit}</li>
      ))}
    </ul>
  </footer>
);
