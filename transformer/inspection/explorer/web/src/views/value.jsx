// What moves along: values, their weighted sum, what the head's output adds to the token's vector, and to what effect.
import { number, signed, weight } from "../format.js";
import { largest, reach } from "../numerics.js";
import { Term, VectorBars } from "../parts/bars.jsx";
import { Missing, Section } from "../parts/section.jsx";
import { Token } from "../parts/token.jsx";

const ROWS = 4; // values shown one by one

export function ValueView({ page }) {
  const { state, attention, query } = page;
  const detail = attention.detail[state.layer];
  return (
    <Section
      id="value"
      title="What the head adds"
      caption="A key's value says what its token has to give; weighted and summed, the values become a change to the query's vector."
    >
      {detail ? (
        <>
          <Mix {...{ page, attention, detail, query }} />
          <Change {...{ page, attention, detail, query }} />
          <Promotes {...{ page, attention, detail, query }} />
        </>
      ) : (
        <Missing>
          The values of layer {state.layer} are not in this page. {page.detailNote}
        </Missing>
      )}
    </Section>
  );
}

function Mix({ page, attention, detail, query }) {
  const { state } = page;
  const keys = attention.columns.length;
  const width = detail.value.shape[2];
  const groups = detail.value.shape[1];
  const weights = attention.weights(state.layer, state.head).subarray(query * keys, (query + 1) * keys);
  const value = (key) =>
    detail.value.data.subarray(
      (key * groups + attention.group(state.head)) * width,
      (key * groups + attention.group(state.head) + 1) * width,
    );
  const mixed = new Float64Array(width);
  for (let key = 0; key < keys; key++)
    if (weights[key]) value(key).forEach((entry, index) => (mixed[index] += weights[key] * entry));
  const top = largest(weights, ROWS, 1e-12);
  const parts = top.map((key) => ({ key, entries: Float64Array.from(value(key), (entry) => weights[key] * entry) }));
  const size = Math.max(reach(mixed), ...parts.map(({ entries }) => reach(entries)));
  const order = Array.from(mixed.keys());
  const bars = { order, largest: size, height: 34 };
  return (
    <div class="vectors values">
      {Array.from({ length: ROWS }, (_, place) => parts[place]).map((part) => (
        <>
          <span class="vector-name">
            {part && <span class="soft">{weight(weights[part.key])} × </span>}
            {part && (
              <Token
                token={attention.columns[part.key]}
                position={part.key}
                role={part.key === state.key ? "key" : ""}
              />
            )}
          </span>
          {part ? (
            <VectorBars {...bars} values={part.entries} tone="value" label={`weighted value of key ${part.key}`} />
          ) : (
            <span class="vector-blank" />
          )}
        </>
      ))}
      <span class="vector-name">
        <b>sum</b> <span class="soft">of all {keys}</span>
      </span>
      <VectorBars
        {...bars}
        values={mixed}
        tone="value"
        label={`weighted sum of all values, largest entry ${number(reach(mixed))}`}
      />
    </div>
  );
}

/**
 * Two vectors span a plane: the token's vector before, what the head adds, and their sum, to scale. The page has the
 * lengths of vectors between layers, so not of what cross-attention adds to, within one.
 */
function Change({ page, attention, detail, query }) {
  const { state, text } = page;
  const cell = query * attention.heads + state.head;
  const added = detail.output_norm.data[cell];
  const cosine = detail.cosine.data[cell];
  const terms = [
    ["this head adds", number(added, 2), "value-text"],
    ["cosine", signed(cosine, 3)],
  ];
  if (attention.queries !== attention.keys) return <Lengths terms={terms} />;
  const side = text.sides[attention.queries];
  const before = side.norms.data[state.layer * side.tokens.length + query];
  const [x, y] = [added * cosine, added * Math.sqrt(Math.max(0, 1 - cosine * cosine))];
  return (
    <figure class="change">
      <Arrows before={before} x={x} y={y} />
      <figcaption>
        <Lengths
          terms={[
            ["vector before", number(before, 2), "query-text"],
            ...terms,
            ["vector after", number(Math.hypot(before + x, y), 2)],
          ]}
        />
      </figcaption>
    </figure>
  );
}

const Lengths = ({ terms }) => (
  <dl class="terms">
    {terms.map(([name, value, tone]) => (
      <Term name={name} value={value} tone={tone} />
    ))}
  </dl>
);

function Arrows({ before, x, y }) {
  const [width, height, margin] = [300, 120, 14];
  const [left, right] = [Math.min(0, before + x), Math.max(before, before + x)];
  const scale = Math.min((width - 2 * margin) / (right - left || 1), (height - 2 * margin) / (y || 1e-9));
  const point = (across, up) => [margin + (across - left) * scale, height - margin - up * scale];
  const [start, tip, end] = [point(0, 0), point(before, 0), point(before + x, y)];
  return (
    <svg
      class="arrows"
      viewBox={`0 0 ${width} ${height}`}
      role="img"
      aria-label="the token's vector, the change, and their sum, to scale"
    >
      <Arrow from={start} to={tip} tone="before" />
      <Arrow from={start} to={end} tone="after" />
      <Arrow from={tip} to={end} tone="added" />
    </svg>
  );
}

function Arrow({ from, to, tone }) {
  const angle = Math.atan2(to[1] - from[1], to[0] - from[0]);
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const size = Math.min(9, length / 2);
  const barb = (turn) => `${to[0] - size * Math.cos(angle + turn)},${to[1] - size * Math.sin(angle + turn)}`;
  return (
    <g class={`arrow ${tone}`}>
      <line x1={from[0]} y1={from[1]} x2={to[0]} y2={to[1]} />
      <polygon points={`${to[0]},${to[1]} ${barb(0.4)} ${barb(-0.4)}`} />
    </g>
  );
}

function Promotes({ page, attention, detail, query }) {
  if (!detail.promotes)
    return (
      <p class="hint">
        Between this stack and the prediction lies more than a read-out: what the change speaks for cannot be told.
      </p>
    );
  const { ids, values } = detail.promotes;
  const count = ids.shape[2];
  const start = (query * attention.heads + page.state.head) * count;
  const list = Array.from({ length: count }, (_, place) => ({
    id: ids.data[start + place],
    value: values.data[start + place],
  }));
  const sorted = list.sort((a, b) => b.value - a.value);
  const [up, down] = [sorted.slice(0, count / 2), sorted.slice(count / 2).reverse()];
  const Row = ({ name, items, tone }) => (
    <p class={`promotes ${tone}`}>
      <span class="soft">{name}</span>
      {items.map(({ id, value }) => (
        <span class="promoted">
          <Token token={page.named(id)} /> <span class="figure">{signed(value, 2)}</span>
        </span>
      ))}
    </p>
  );
  return (
    <div>
      <p class="hint">
        {page.predicts
          ? "Straight to the prediction, past all later layers, this speaks for and against these next tokens (logits):"
          : "Read through the embedding table, past all later layers, this comes nearer to these tokens and away from those:"}
      </p>
      <Row name="promotes" items={up} tone="plus-text" />
      <Row name="lowers" items={down} tone="minus-text" />
    </div>
  );
}
