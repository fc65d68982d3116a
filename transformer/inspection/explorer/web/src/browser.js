// What the views need of the browser: sizes, colours, theme, and whether to move.
import { useEffect, useLayoutEffect, useState } from "preact/hooks";

/** The width in pixels of the element in `ref`, kept up to date. */
export function useWidth(ref) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const measure = () => setWidth(ref.current.clientWidth);
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(ref.current);
    return () => observer.disconnect();
  }, []);
  return width;
}

/** What a colour of the style sheet is now, for canvases: `element` must be in the page. */
export function colour(element, name) {
  element.style.color = `var(${name})`;
  const value = getComputedStyle(element).color;
  element.style.color = "";
  return value;
}

/** A canvas of so many CSS pixels made sharp for the screen; returns its cleared context. */
export function sharpen(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

/** [chosen, shown, choose]: "auto", "light" or "dark", and which of the two that comes to. */
export function useTheme() {
  const [chosen, choose] = useState(() => remembered() ?? "auto");
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const listen = () => setDark(query.matches);
    query.addEventListener("change", listen);
    return () => query.removeEventListener("change", listen);
  }, []);
  useLayoutEffect(() => {
    document.documentElement.dataset.theme = chosen;
    remember(chosen);
  }, [chosen]);
  const shown = chosen === "auto" ? (dark ? "dark" : "light") : chosen;
  return [chosen, shown, choose];
}

// A page opened from a file or in a frame may have no storage at all: then the choice lasts as long as the page.
function remembered() {
  try {
    const theme = localStorage.getItem("explorer-theme");
    return ["auto", "light", "dark"].includes(theme) ? theme : null;
  } catch {
    return null;
  }
}

function remember(theme) {
  try {
    localStorage.setItem("explorer-theme", theme);
  } catch {
    // as above
  }
}

/** Brings an element into view and gives it the focus; links would reload a page that stands in a frame's srcdoc. */
export function goTo(id) {
  const element = document.getElementById(id);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  element.querySelector("h2")?.focus({ preventScroll: true });
}
