// The text itself, with arcs between its tokens: from each key that a query attends to, as wide as its weight.
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { weight } from "../format.js";
import { largest } from "../numerics.js";
import { Check } from "../parts/controls.jsx";
import { Section } from "../parts/section.jsx";
import { Token, TokenRow } from "../parts/token.jsx";

const MOST = 300; // arcs at once
const LEAST = 0.1; // of all queries' arcs, those with a weight from here on
const FAINTEST = 0.004; // of one query's
const HEIGHT = 190; // at most
const LOOP = 54; // of an arc from a token to itself, as far as its handles
const WIDEST = 14;
const MARGIN = 40; // pixels between the chosen token and the edge of what can be seen
const SHORT = 16; // texts of so few tokens are set larger
const LONG = 48; // texts of more tokens are shown as a paragraph too

export function ArcsView({ page }) {
  const { state, attention, select } = page;
  const [everything, setEverything] = useState(false);
  const crossing = attention.queries !== attention.keys;
  const weights = attention.weights(state.layer, state.head);
  const arcs = everything ? strongest(weights) : ofQuery(weights, page.query, attention.columns.length);
  return (
    <Section
      wide
      id="text"
      title="Who attends to whom"
      caption="Each arc brings to the chosen token something of another; the wider the arc, the more."
    >
      <div class="controls">
        <Check label={`arcs of every token, from weight ${LEAST} on`} checked={everything} onChange={setEverything} />
      </div>
      <div class="arcs-scroll">
        <Drawing key={attention.id} {...{ page, attention, arcs, weights, crossing, select }} />
      </div>
      {attention.columns.length > LONG && <Overview {...{ page, weights }} />}
      <Ranking page={page} weights={weights} />
    </Section>
  );
}

const ofQuery = (weights, query, keys) =>
  largest(weights.subarray(query * keys, (query + 1) * keys), MOST, FAINTEST).map((key) => query * keys + key);

const strongest = (weights) => largest(weights, MOST, LEAST);

/** Rows of tokens and, measured from where they stand, the arcs: above one row, or between two. */
function Drawing({ page, attention, arcs, weights, crossing, select }) {
  const box = useRef();
  const [middles, setMiddles] = useState(null);
  useLayoutEffect(() => {
    const rows = box.current.querySelectorAll(".token-row");
    const middlesOf = (row) => Array.from(row.children, (word) => word.offsetLeft + word.offsetWidth / 2);
    setMiddles({ keys: middlesOf(rows[0]), queries: middlesOf(rows[rows.length - 1]), width: box.current.scrollWidth });
  }, []);
  useLayoutEffect(() => {
    const scroller = box.current.parentElement;
    const from = (middles?.queries[page.query] ?? 0) - scroller.scrollLeft;
    if (from < MARGIN || from > scroller.clientWidth - MARGIN) scroller.scrollLeft += from - scroller.clientWidth / 2;
  }, [middles, page.query]);
  const keys = attention.columns.length;
  const height = useMemo(() => (middles && !crossing ? tallest(weights, middles) : HEIGHT), [middles, weights]);
  const path = ([query, key]) =>
    crossing
      ? link(middles.keys[key], middles.queries[query])
      : arc(middles.keys[key], middles.queries[query], middles.width, height - 2);
  const shades = weights.subarray(page.query * keys, (page.query + 1) * keys);
  const keyRow = crossing && (
    <TokenRow
      tokens={attention.columns}
      chosen={page.state.key}
      role="key"
      shades={shades}
      label="keys"
      onChoose={(key) => select({ key })}
    />
  );
  return (
    <div class={`arcs ${attention.rows.length <= SHORT ? "short" : ""}`} ref={box}>
      {keyRow}
      <svg class="arcs-picture" width={middles?.width ?? 0} height={height} aria-hidden="true">
        {middles &&
          [...arcs].reverse().map((cell) => {
            const pair = [Math.floor(cell / keys), cell % keys];
            const mine = pair[0] === page.query;
            return (
              <path
                key={cell}
                d={path(pair)}
                class={`arc ${mine ? "mine" : ""} ${mine && pair[1] === page.state.key ? "chosen" : ""}`}
                stroke-width={Math.max(0.6, WIDEST * weights[cell]).toFixed(2)}
              />
            );
          })}
      </svg>
      <TokenRow
        tokens={attention.rows}
        chosen={page.query}
        shades={crossing ? null : shades}
        label="queries"
        onChoose={(query) => select({ query })}
      />
    </div>
  );
}

/** How far above the row the handles of an arc over such a distance stand; the arc reaches three quarters of it. */
const rise = (distance, width) => 30 + 1.25 * (HEIGHT - 40) * Math.sqrt(distance / Math.max(width, 1));

/** From key to query over the row: the higher the longer it is. */
function arc(from, to, width, floor) {
  if (from === to)
    return `M${from - 9} ${floor}C${from - 26} ${floor - LOOP} ${from + 26} ${floor - LOOP} ${from + 9} ${floor}`;
  const top = floor - rise(Math.abs(to - from), width);
  return `M${from} ${floor}C${from} ${top} ${to} ${top} ${to} ${floor}`;
}

/** Room for every arc of a head, so that it does not change from one query to the next. */
function tallest(weights, { keys, width }) {
  let longest = 0;
  weights.forEach((weight, cell) => {
    const [query, key] = [Math.floor(cell / keys.length), cell % keys.length];
    if (weight >= FAINTEST) longest = Math.max(longest, Math.abs(keys[query] - keys[key]));
  });
  return Math.ceil(0.75 * Math.max(LOOP, longest && rise(longest, width)) + WIDEST / 2) + 2;
}

const link = (from, to) => `M${from} 2C${from} ${HEIGHT / 2} ${to} ${HEIGHT / 2} ${to} ${HEIGHT - 2}`;

/** A long text as a paragraph, darker where the query looks: what the arcs cannot show at once. */
function Overview({ page, weights }) {
  const { attention, query, select } = page;
  const keys = attention.columns.length;
  return (
    <div class="overview">
      <TokenRow
        tokens={attention.columns}
        chosen={page.state.key}
        role="key"
        shades={weights.subarray(query * keys, (query + 1) * keys)}
        label="keys"
        onChoose={(key) => select({ key })}
      />
    </div>
  );
}

/** The keys with most weight in words and numbers, five of them and the rest. */
function Ranking({ page, weights }) {
  const { attention, query } = page;
  const keys = attention.columns.length;
  const row = weights.subarray(query * keys, (query + 1) * keys);
  const top = largest(row, 5, 1e-9);
  const rest = row.reduce((sum, weight) => sum + weight, 0) - top.reduce((sum, key) => sum + row[key], 0);
  return (
    <p class="ranking">
      <Token token={attention.rows[query]} position={query} role="query" /> attends to{" "}
      {top.map((key) => (
        <span class="ranking-item">
          <Token token={attention.columns[key]} position={key} role={key === page.state.key ? "key" : ""} />{" "}
          {weight(row[key])}
        </span>
      ))}
      {keys > 5 && <span class="ranking-item soft">the others {weight(Math.max(0, rest))}</span>}
    </p>
  );
}
