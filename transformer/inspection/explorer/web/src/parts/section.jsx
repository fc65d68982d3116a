/** A part of the page: a heading that can be gone to, one line that explains it, and the view. */
export function Section({ id, title, caption, children, wide = false }) {
  return (
    <section id={id} class={wide ? "card wide" : "card"} aria-labelledby={`${id}-title`}>
      <h2 id={`${id}-title`} tabIndex={-1}>
        {title}
      </h2>
      <p class="caption">{caption}</p>
      {children}
    </section>
  );
}

/** One of several texts in a place that is as tall as the tallest, so that nothing below moves. */
export const OneOf = ({ texts, shown }) => (
  <div class="one-of says">
    {texts.map((text, index) => (
      <p class={index === shown ? "" : "hidden"} aria-hidden={index !== shown}>
        {text}
      </p>
    ))}
  </div>
);

/** Says what a view cannot show here, and how to get it. */
export const Missing = ({ children }) => <p class="missing">{children}</p>;
