// Dots whose area is a number: SVG for grids that one can count, a canvas for larger ones.
import { useLayoutEffect, useRef } from "preact/hooks";
import { colour, sharpen } from "../browser.js";
import { reach } from "../numerics.js";

/** The radius of a dot: the area of a whole cell's dot for the largest value, in proportion below. */
export const radius = (value, largest, cell) => 0.46 * cell * Math.sqrt(Math.min(1, Math.abs(value) / largest));

/** What the largest dot stands for: 1 for weights, the largest finite score otherwise. */
export const largestOf = (values, kind) => (kind === "weight" ? 1 : reach(values) || 1);

const tone = (value, kind) => (kind === "weight" ? "weight" : value < 0 ? "minus" : "plus");

// Negative values are rings, so that colour is not all that tells them apart; a ring's outer edge is the value's.
const RING = 1.5;

const drawn = (value) => (Number.isFinite(value) ? value : 0);

export function SvgDots({ values, kind, mask, count, cell, asColumns }) {
  const largest = largestOf(values, kind);
  const length = values.length / count;
  const [width, height] = (asColumns ? [length, count] : [count, length]).map((size) => size * cell);
  return (
    <svg class="dots" width={width} height={height} viewBox={`0 0 ${width} ${height}`} aria-hidden="true">
      {Array.from(values, (value, index) => {
        const query = Math.floor(index / count);
        const key = index % count;
        const [x, y] = asColumns ? [query, key] : [key, query];
        // A masked pair has a score, but no weight: its dot is gone from the mask on.
        const empty = !mask[index] && (kind === "weight" || !Number.isFinite(value));
        return (
          <circle
            key={index}
            class={tone(value, kind)}
            data-pair={`${query},${key}`}
            cx={(x + 0.5) * cell}
            cy={(y + 0.5) * cell}
            r={empty ? 0 : Math.max(0, radius(drawn(value), largest, cell) - (value < 0 ? RING / 2 : 0)).toFixed(3)}
          />
        );
      })}
    </svg>
  );
}

export function CanvasDots({ values, kind, count, cell, asColumns, window: { x0, x1, y0, y1 }, theme }) {
  const canvas = useRef();
  useLayoutEffect(() => {
    const context = sharpen(canvas.current, (x1 - x0) * cell, (y1 - y0) * cell);
    const colours = Object.fromEntries(
      ["weight", "plus", "minus"].map((name) => [name, colour(canvas.current, `--${name}`)]),
    );
    const largest = largestOf(values, kind);
    for (let y = y0; y < y1; y++) {
      for (let x = x0; x < x1; x++) {
        const value = drawn(asColumns ? values[x * count + y] : values[y * count + x]);
        const size = radius(value, largest, cell);
        if (size > 0.2)
          drawDot(context, (x - x0 + 0.5) * cell, (y - y0 + 0.5) * cell, size, colours[tone(value, kind)], value < 0);
      }
    }
  }, [values, kind, count, cell, asColumns, x0, x1, y0, y1, theme]);
  return (
    <canvas class="dots" ref={canvas} style={{ left: `${x0 * cell}px`, top: `${y0 * cell}px` }} aria-hidden="true" />
  );
}

function drawDot(context, x, y, size, shade, ring) {
  context.beginPath();
  if (ring && size > RING) {
    context.strokeStyle = shade;
    context.lineWidth = RING;
    context.arc(x, y, size - RING / 2, 0, 2 * Math.PI);
    context.stroke();
  } else {
    context.fillStyle = shade;
    context.arc(x, y, size, 0, 2 * Math.PI);
    context.fill();
  }
}
