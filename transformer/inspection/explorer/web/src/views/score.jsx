// How one score comes about: the entries of the query times those of the key, added up.
import { useMemo, useState } from "preact/hooks";
import { number, signed, throughMask } from "../format.js";
import { largest, reach } from "../numerics.js";
import { Term, VectorBars } from "../parts/bars.jsx";
import { Check } from "../parts/controls.jsx";
import { Missing, Section } from "../parts/section.jsx";
import { Token } from "../parts/token.jsx";

export function ScoreView({ page }) {
  const { state, attention, query } = page;
  const detail = attention.detail[state.layer];
  return (
    <Section
      id="score"
      title="How one score comes about"
      caption="The query is a question, the key an answer on offer; their entries are multiplied and added up: large where the two point the same way."
    >
      <p class="pair">
        <Token token={attention.rows[query]} position={query} role="query" /> asks{" "}
        <Token token={attention.columns[state.key]} position={state.key} role="key" />
      </p>
      {detail ? (
        <Products {...{ page, attention, detail }} />
      ) : (
        <Missing>
          The queries and keys of layer {state.layer} are not in this page. {page.detailNote}
        </Missing>
      )}
    </Section>
  );
}

function Products({ page, attention, detail }) {
  const { state, query: t } = page;
  const { head, key: s } = state;
  const [sorted, setSorted] = useState(false);
  const [marked, setMarked] = useState(null);
  const width = attention.head_width;
  const query = slice(detail.query, t, head, width);
  const key = slice(detail.key, s, attention.group(head), width);
  const product = query.map((entry, index) => entry * key[index]);
  const order = useMemo(
    () => (sorted ? largest(product.map(Math.abs), width) : Array.from(product.keys())),
    [sorted, detail, t, s, head],
  );
  const shared = Math.max(reach(query), reach(key));
  const bars = { order, marked, onMark: setMarked };
  return (
    <>
      <div class="controls">
        <Check label="largest products first" checked={sorted} onChange={setSorted} />
      </div>
      <div class="vectors">
        <span class="vector-name query-text">query</span>
        <VectorBars
          {...bars}
          values={query}
          largest={shared}
          tone="query"
          label={`query, ${width} entries, largest ${number(reach(query))}`}
        />
        <span class="vector-name key-text">key</span>
        <VectorBars
          {...bars}
          values={key}
          largest={shared}
          tone="key"
          label={`key, ${width} entries, largest ${number(reach(key))}`}
        />
        <span class="vector-name">product</span>
        <VectorBars
          {...bars}
          values={product}
          largest={reach(product)}
          tone="product"
          height={72}
          label={`products, ${width} entries, sum ${number(product.reduce((a, b) => a + b, 0))}`}
        />
      </div>
      <p class="hint steady">
        {marked === null
          ? `${width} dimensions; point at one for its numbers.`
          : entry(order[marked], query, key, product)}
      </p>
      <Sum page={page} attention={attention} />
    </>
  );
}

const slice = ({ shape: [, heads, width], data }, position, head) =>
  Float64Array.from(data.subarray((position * heads + head) * width, (position * heads + head + 1) * width));

const entry = (index, query, key, product) =>
  `dimension ${index}: ${signed(query[index], 3)} × ${signed(key[index], 3)} = ${signed(product[index], 3)}`;

/** From the sum of the products to the weight, one term a step. */
function Sum({ page, attention }) {
  const { state, query } = page;
  const { list } = attention.steps(state.layer, state.head);
  const cell = query * attention.columns.length + state.key;
  const seen = attention.mask(state.layer)[cell];
  return (
    <dl class="terms">
      {list.map(({ id, label, values }) => {
        if (id === "softmax") return <Term key={id} name="weight" value={values[cell]} decimals={4} tone="result" />;
        if (id === "masked") return <Term key={id} name="mask" value={throughMask(seen)} />;
        return <Term key={id} name={id === "raw" ? "sum of products" : label} value={signed(values[cell], 3)} />;
      })}
    </dl>
  );
}
