// The same word in different company: how alike its vectors are in two texts, layer by layer.
import { useRef } from "preact/hooks";
import { useWidth } from "../browser.js";
import { number } from "../format.js";
import { Missing, Section } from "../parts/section.jsx";
import { Token, TokenRow } from "../parts/token.jsx";

const HEIGHT = 220;
const PLACED = ["learned", "sinusoidal"]; // positions that are added to the vectors before the first layer
const MARGIN = { left: 40, right: 14, top: 12, bottom: 26 };

export function CompareView({ page }) {
  const { state, attention } = page;
  const all = state.data.similarity ?? [];
  const side = all.some((entry) => entry.side === attention.queries) ? attention.queries : all[0]?.side;
  const several = state.texts.length > 1;
  const compared = state.compared[side ?? attention.queries];
  const pairs = all.filter((entry) => entry.side === side && (several ? entry.a !== entry.b : attention.keys === side));
  const lines = pairs.filter(({ a, b }) => compared[a] && compared[b]).map((entry) => line(page, entry, several));
  const placed = PLACED.includes(state.data.model.stacks[side ?? attention.queries]?.position);
  return (
    <Section
      wide
      id="compare"
      title="The same word in other company"
      caption={`Before the first layer a word's vector is the same ${placed ? "but for its place" : "everywhere"}; each layer lets the words around it pull it to its meaning here. Cosine 1 is the same direction, 0 unrelated.`}
    >
      {state.texts.map((text, index) => (
        <div class="compared">
          <span class="compared-name">text {index + 1}</span>
          <div class="row-scroll">
            <TokenRow
              tokens={text.sides[side ?? attention.queries].tokens}
              chosen={state.words[side ?? attention.queries][index]}
              role={compared[index] ? "query" : ""}
              label={`word of text ${index + 1}`}
              onChoose={(position) => page.compare(side ?? attention.queries, index, position)}
            />
          </div>
        </div>
      ))}
      {lines.length ? (
        <Lines lines={lines} layer={state.layer} />
      ) : (
        <Missing>
          {pairs.length ? "No word in common: choose one in each text." : "Similarities are not in this page."}
        </Missing>
      )}
      {!several && (
        <p class="hint">
          With one text, the query's vector is compared with the key's. Give two or three texts to compare a word
          between them.
        </p>
      )}
    </Section>
  );
}

/** The cosines of a pair of words, one for each layer. */
function line({ state }, { a, b, side, cosines }, several) {
  const [depth, rows, columns] = cosines.shape;
  const first = state.words[side][a];
  const second = several ? state.words[side][b] : Math.min(state.key, columns - 1);
  const at = (layer) => cosines.data[(layer * rows + first) * columns + second];
  const tokens = [state.texts[a].sides[side].tokens[first], state.texts[b].sides[side].tokens[second]];
  return {
    a,
    b,
    tokens,
    positions: [first, second],
    values: Array.from({ length: depth }, (_, layer) => (at(layer) / 65535) * 2 - 1),
  };
}

function Lines({ lines, layer }) {
  const box = useRef();
  const width = useWidth(box);
  const depth = lines[0].values.length;
  const lowest = lines.some(({ values }) => Math.min(...values) < 0) ? -1 : 0;
  const x = (index) => MARGIN.left + (index * (width - MARGIN.left - MARGIN.right)) / Math.max(1, depth - 1);
  const y = (value) => MARGIN.top + ((1 - value) * (HEIGHT - MARGIN.top - MARGIN.bottom)) / (1 - lowest);
  const every = Math.ceil(depth / 16);
  return (
    <div ref={box}>
      <svg
        class="lines"
        width={width}
        height={HEIGHT}
        role="img"
        aria-label="cosine by layer; the numbers are in the table below"
      >
        {(lowest ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((tick) => (
          <g class="tick">
            <line x1={MARGIN.left} x2={width - MARGIN.right} y1={y(tick)} y2={y(tick)} />
            <text x={MARGIN.left - 6} y={y(tick) + 4} text-anchor="end">
              {number(tick, 2)}
            </text>
          </g>
        ))}
        <line class="now" x1={x(layer + 1)} x2={x(layer + 1)} y1={MARGIN.top} y2={HEIGHT - MARGIN.bottom} />
        {Array.from(
          { length: depth },
          (_, index) =>
            index % every === 0 && (
              <text x={x(index)} y={HEIGHT - 8} text-anchor="middle">
                {index ? index - 1 : "emb."}
              </text>
            ),
        )}
        {lines.map(({ values }, place) => (
          <g class={`line line-${place % 3}`}>
            <polyline points={values.map((value, index) => `${x(index)},${y(value)}`).join(" ")} />
            {values.map((value, index) => (
              <circle cx={x(index)} cy={y(value)} r={3.5}>
                <title>{number(value, 4)}</title>
              </circle>
            ))}
          </g>
        ))}
      </svg>
      <div class="table-scroll" tabIndex={0} role="group" aria-label="cosines, scrolls">
        <table class="cosines">
          <thead>
            <tr>
              <th scope="col">pair</th>
              {lines[0].values.map((_, index) => (
                <th scope="col" class="figure">
                  {index ? `after ${index - 1}` : "embedding"}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {lines.map(({ a, b, tokens, positions, values }, place) => (
              <tr>
                <th scope="row">
                  <span class={`swatch line-${place % 3}`} /> {a + 1}{" "}
                  <Token token={tokens[0]} position={positions[0]} /> – {b + 1}{" "}
                  <Token token={tokens[1]} position={positions[1]} />
                </th>
                {values.map((value) => (
                  <td class="figure">{number(value, 3)}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </div>
  );
}
