// Every layer and head as a thumbnail, in place or sorted by what the heads do.
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { colour } from "../browser.js";
import { number } from "../format.js";
import { plain } from "../tokens.js";
import { Check, Pick } from "../parts/controls.jsx";
import { OneOf, Section, warning } from "../parts/section.jsx";

const THUMB = 48; // pixels along a side; larger patterns show the largest weight of each patch
const LEAST = 29; // CSS pixels along a side, before the gallery scrolls
const PER_ROW = 6; // when sorted
const MOST = 240; // thumbnails at once, when sorted
const LONG = 20; // characters of a token in a label

const SCORES = [
  ["induction", "induction", "weight on the tokens that followed earlier occurrences of the query's token"],
  ["previous_token", "previous token", "weight on the token just before"],
  ["duplicate_token", "duplicate token", "weight on earlier occurrences of the same token"],
  ["sink_mass", "first token", "weight on the first token, where heads rest that have nothing to say"],
  ["entropy", "entropy", "nats: 0 where each query attends to one key only"],
  ["distance", "distance", "tokens between query and key, on average"],
];

/** What heads are sorted by: [name, label, in a sentence]. Their effect is that on one place of the text. */
function ordersOf({ text, attention, output }) {
  const token = plain(text.sides[text.next.side].tokens[text.position]);
  const at = `${token.length > LONG ? `${token.slice(0, LONG)}…` : token} at ${text.position}`;
  const explained = `nats (KL divergence) by which the ${output} moves on ${at} when the head is set to zero`;
  return [["ablation", `effect of removing it, on ${at} (nats)`, explained], ...SCORES].filter(([name]) =>
    attention.measures(name),
  );
}

export function HeadsView({ page }) {
  const { state, attention } = page;
  const [wanted, setOrder] = useState("place");
  const [lowFirst, setLowFirst] = useState(false);
  const [limit, setLimit] = useState(MOST);
  const orders = ordersOf(page);
  const order = orders.some(([name]) => name === wanted) ? wanted : "place";
  const sorted = useMemo(() => sort(attention, order, lowFirst), [attention, order, lowFirst]);
  const inPlace = order === "place";
  const shown = inPlace ? sorted : sorted.slice(0, limit);
  return (
    <Section
      id="heads"
      title="All heads at once"
      caption="Every head asks its own kind of question; each square is one head's pattern, rows of queries from the top."
      warned={attention.measures("ablation") && warning(page, "the effect of removing a head is on")}
    >
      <div class="controls">
        <Pick
          label="order"
          value={order}
          onChange={setOrder}
          options={[
            { value: "place", label: "by layer and head" },
            ...orders.map(([value, label]) => ({ value, label })),
          ]}
        />
        <Check label="lowest first" checked={lowFirst} onChange={setLowFirst} />
      </div>
      <OneOf
        texts={["Layers from the top, heads from the left.", ...orders.map(([, , explained]) => explained)]}
        shown={1 + orders.findIndex(([name]) => name === order)}
      />
      <Gallery page={page} shown={shown} order={orders.find(([name]) => name === order)} perRow={inPlace ? attention.heads : 0} key={attention.id} />
      <Scores attention={attention} layer={state.layer} head={state.head} orders={orders} />
      {shown.length < sorted.length && (
        <button type="button" onClick={() => setLimit(limit + MOST)}>
          {sorted.length - shown.length} more heads
        </button>
      )}
    </Section>
  );
}

/** All that is measured of the chosen head. */
const Scores = ({ attention, layer, head, orders }) => (
  <div>
    <p class="hint">
      layer {layer}, head {head}
    </p>
    <dl class="terms small">
      {orders.map(([name, label, explained]) => (
        <div class="term" title={explained}>
          <dt>{label}</dt>
          <dd>{number(attention.score(name, layer, head))}</dd>
        </div>
      ))}
    </dl>
  </div>
);

function sort(attention, order, lowFirst) {
  const all = attention.layers.flatMap((layer) =>
    Array.from({ length: attention.heads }, (_, head) => ({ layer, head })),
  );
  if (order === "place") return lowFirst ? all.reverse() : all;
  const value = ({ layer, head }) => attention.score(order, layer, head);
  const sign = lowFirst ? 1 : -1;
  const missingLast = (item) => (Number.isNaN(value(item)) ? Infinity : sign * value(item));
  return all.sort((a, b) => missingLast(a) - missingLast(b) || 0);
}

function Gallery({ page, shown, order, perRow }) {
  const { state, attention, select, theme } = page;
  const columns = perRow || PER_ROW;
  const chosen = Math.max(
    0,
    shown.findIndex(({ layer, head }) => layer === state.layer && head === state.head),
  );
  const move = (event) => {
    const step = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -columns,
      ArrowDown: columns,
      Home: -Infinity,
      End: Infinity,
    }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(shown.length - 1, chosen + step));
    select(shown[next]);
    event.currentTarget.querySelectorAll("button")[next].focus();
  };
  return (
    <div
      class="gallery"
      role="listbox"
      aria-label={`heads of the ${page.attentionTitle}`}
      onKeyDown={move}
      style={{ gridTemplateColumns: `repeat(${columns}, minmax(${LEAST}px, ${2 * THUMB}px))` }}
    >
      {shown.map(({ layer, head }, index) => (
        <button
          type="button"
          key={`${layer}/${head}`}
          class="thumb"
          role="option"
          aria-selected={index === chosen}
          tabIndex={index === chosen ? 0 : -1}
          aria-label={thumbLabel(attention, layer, head, order)}
          title={thumbLabel(attention, layer, head, order)}
          onClick={() => select({ layer, head })}
        >
          <Thumb {...{ attention, layer, head, theme }} />
          <span class="thumb-name">
            {layer}.{head}
            {order && <b>{rounded(attention.score(order[0], layer, head))}</b>}
          </span>
        </button>
      ))}
    </div>
  );
}

/** With two decimals, however small: there is room for no more. */
const rounded = (value) => number(Math.round(100 * value) / 100, 2);

function thumbLabel(attention, layer, head, order) {
  const score = order ? `, ${order[1]}: ${number(attention.score(order[0], layer, head))}` : "";
  return `layer ${layer}, head ${head}${score}`;
}

// Pictures rather than canvases: the browser paints a hundred of them much faster.
const scratch = document.createElement("canvas");

function Thumb({ attention, layer, head, theme }) {
  const picture = useRef();
  useLayoutEffect(() => later(() => paint(picture.current, attention, layer, head)), [attention, layer, head, theme]);
  const coarse = attention.columns.length <= LEAST;
  return <img ref={picture} class={`thumb-picture ${coarse ? "coarse" : ""}`} alt="" />;
}

/** Draws one pattern, darker for more: the root of the weight, as a dot's width is. */
function paint(picture, attention, layer, head) {
  const keys = attention.columns.length;
  const queries = attention.rows.length;
  scratch.width = Math.min(keys, THUMB);
  scratch.height = Math.min(queries, THUMB);
  const most = pooled(attention.bytes(layer, head), queries, keys, scratch.height, scratch.width);
  const [red, green, blue] = colour(picture, "--weight").match(/[\d.]+/g);
  const image = new ImageData(scratch.width, scratch.height);
  most.forEach((byte, spot) => image.data.set([red, green, blue, Math.sqrt(byte * 255)], 4 * spot));
  scratch.getContext("2d").putImageData(image, 0, 0);
  picture.src = scratch.toDataURL();
}

/** The largest byte of each patch of a matrix that is brought down to height x width. */
function pooled(bytes, queries, keys, height, width) {
  const most = new Uint8Array(width * height);
  for (let t = 0; t < queries; t++) {
    const line = Math.floor((t * height) / queries) * width;
    for (let s = 0; s < keys; s++) {
      const spot = line + Math.floor((s * width) / keys);
      const byte = bytes[t * keys + s];
      if (byte > most[spot]) most[spot] = byte;
    }
  }
  return most;
}

// Thumbnails wait their turn, a few in each frame, so that the page answers while they are drawn.
const queue = new Set();
const SLICE = 8; // milliseconds in a frame

function later(job) {
  if (queue.size === 0) requestAnimationFrame(work);
  queue.add(job);
  return () => queue.delete(job);
}

function work() {
  const end = performance.now() + SLICE;
  for (const job of queue) {
    queue.delete(job);
    job();
    if (performance.now() > end) break;
  }
  if (queue.size > 0) requestAnimationFrame(work);
}
