// The grid of an attention pattern: tokens along both sides, a dot for each pair, a cross of light on the chosen one.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { useWidth } from "../browser.js";
import { CanvasDots, SvgDots } from "./dots.jsx";
import { Token } from "./token.jsx";

const CELL = { least: 16, most: 54, tiny: 4 };
const SIDE = 104; // room for the tokens to the left
const TOP = { level: 38, upright: 100 }; // room for the tokens above, written level or upright
const LEVEL = 46; // cells from this size on have room for a level token
const HEIGHT = 640; // the box scrolls beyond this
const SVG_CELLS = 1024;
const LINE = 15; // pixels between tokens that can be read
const RULED = 9; // cells from this size on have lines between them

/**
 * Args: rows are queries and columns keys in `values` [T, S]; `asColumns` draws queries along the top. `selected` and
 * `hovered` are {query, key}; `kind` is "weight" (areas out of 1) or "score" (signed areas out of the largest).
 */
export function Grid({
  rows,
  columns,
  values,
  kind,
  mask,
  asColumns,
  whole,
  selected,
  hovered,
  label,
  hint,
  theme,
  onSelect,
  onHover,
  onKey,
}) {
  const scroller = useRef();
  const room = useWidth(scroller) - SIDE;
  const across = asColumns ? rows : columns;
  const down = asColumns ? columns : rows;
  const fitting = cellThatFits(room, across.length, down.length);
  const cell = Math.max(whole ? CELL.tiny : CELL.least, fitting);
  const top = cell < LEVEL ? TOP.upright : TOP.level;
  const [view, setView] = useState({ left: 0, top: 0 });
  const place = ({ query, key }) => (asColumns ? { x: query, y: key } : { x: key, y: query });
  const pair = (x, y) => (asColumns ? { query: x, key: y } : { query: y, key: x });

  useKeepInView(scroller, place(selected), cell);
  const at = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / cell);
    const y = Math.floor((event.clientY - box.top) / cell);
    return x >= 0 && y >= 0 && x < across.length && y < down.length ? pair(x, y) : null;
  };
  const move = (event) => {
    const [x, y] =
      {
        ArrowLeft: [-1, 0],
        ArrowRight: [1, 0],
        ArrowUp: [0, -1],
        ArrowDown: [0, 1],
        Home: [-Infinity, 0],
        End: [Infinity, 0],
      }[event.key] ?? [];
    if (x === undefined) return;
    event.preventDefault();
    if (event.shiftKey) return onKey(x, y);
    const now = place(selected);
    const bound = (value, length) => Math.max(0, Math.min(length - 1, value));
    onSelect(pair(bound(now.x + x, across.length), bound(now.y + y, down.length)), true);
  };
  const window_ = visible(view, room, cell, across.length, down.length);
  const Dots = rows.length * columns.length <= SVG_CELLS ? SvgDots : CanvasDots;
  const marked = place(hovered ?? selected);
  return (
    <div
      class="grid-scroll"
      ref={scroller}
      role="application"
      tabIndex={0}
      aria-label={label}
      aria-describedby={hint}
      onKeyDown={move}
      onScroll={(event) => setView({ left: event.currentTarget.scrollLeft, top: event.currentTarget.scrollTop })}
      style={{ maxHeight: `${HEIGHT}px` }}
    >
      <div class="grid-sheet" style={{ gridTemplate: `${top}px auto / ${SIDE}px ${across.length * cell}px` }}>
        <div class="grid-corner" aria-hidden="true">
          <span class={asColumns ? "query-text" : "key-text"}>{asColumns ? "queries" : "keys"} →</span>
          <span class={asColumns ? "key-text" : "query-text"}>{asColumns ? "keys" : "queries"} ↓</span>
        </div>
        <Labels
          tokens={across}
          from={window_.x0}
          to={window_.x1}
          cell={cell}
          chosen={marked.x}
          role={asColumns ? "query" : "key"}
          top
        />
        <Labels
          tokens={down}
          from={window_.y0}
          to={window_.y1}
          cell={cell}
          chosen={marked.y}
          role={asColumns ? "key" : "query"}
        />
        <div
          class="grid-plane"
          style={{
            width: `${across.length * cell}px`,
            height: `${down.length * cell}px`,
            backgroundSize: cell < RULED ? "0 0" : `${cell}px ${cell}px`,
          }}
          onPointerMove={(event) => onHover(at(event))}
          onPointerLeave={() => onHover(null)}
          onClick={(event) => at(event) && onSelect(at(event), false)}
        >
          <Cross x={marked.x} y={marked.y} cell={cell} asColumns={asColumns} />
          <Dots {...{ values, kind, mask, cell, asColumns, theme }} count={columns.length} window={window_} />
        </div>
      </div>
    </div>
  );
}

/** The largest cell with which the whole grid can be seen at once. */
export const cellThatFits = (room, across, down) =>
  Math.min(CELL.most, Math.floor(room / across), Math.floor((HEIGHT - TOP.upright) / down));

/** The range of cells that can be seen in the box, and a few more, so that scrolling finds them drawn. */
function visible({ left, top }, room, cell, across, down) {
  const margin = 6;
  return {
    x0: Math.max(0, Math.floor(left / cell) - margin),
    x1: Math.min(across, Math.ceil((left + room) / cell) + margin),
    y0: Math.max(0, Math.floor(top / cell) - margin),
    y1: Math.min(down, Math.ceil((top + HEIGHT) / cell) + margin),
  };
}

function useKeepInView(scroller, { x, y }, cell) {
  const first = useRef(true);
  const follow = first.current ? useLayoutEffect : useEffect;
  follow(() => {
    first.current = false;
    const box = scroller.current;
    const top = box.querySelector(".grid-top").offsetHeight;
    box.scrollLeft = nearest(box.scrollLeft, x * cell, cell, box.clientWidth - SIDE);
    box.scrollTop = nearest(box.scrollTop, y * cell, cell, box.clientHeight - top);
  }, [x, y, cell]);
}

/** The scroll position closest to `now` that shows a cell from `start` on. */
const nearest = (now, start, cell, room) => Math.max(start + cell - room, Math.min(start, now));

function Labels({ tokens, from, to, cell, chosen, role, top = false }) {
  const upright = top && cell < LEVEL;
  const every = Math.ceil(LINE / cell); // tokens that would overlap give way to the chosen one
  const shown = [];
  for (let index = from; index < to; index++) {
    const near = Math.abs(index - chosen) < every;
    if (index === chosen || (index % every === 0 && !near)) shown.push(index);
  }
  return (
    <div class={top ? "grid-top" : "grid-side"} aria-hidden="true">
      {shown.map((index) => (
        <span
          key={index}
          class={`grid-label ${upright ? "upright" : ""} ${index === chosen ? role : ""}`}
          style={
            top ? { left: `${index * cell}px`, width: `${cell}px` } : { top: `${index * cell}px`, height: `${cell}px` }
          }
        >
          <Token token={tokens[index]} position={index} />
        </span>
      ))}
    </div>
  );
}

function Cross({ x, y, cell, asColumns }) {
  const column = { left: `${x * cell}px`, width: `${cell}px` };
  const row = { top: `${y * cell}px`, height: `${cell}px` };
  return (
    <>
      <div class={`grid-band down ${asColumns ? "query" : "key"}`} style={column} />
      <div class={`grid-band across ${asColumns ? "key" : "query"}`} style={row} />
      <div class="grid-chosen" style={{ ...column, ...row }} />
    </>
  );
}
