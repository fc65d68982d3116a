/** A part of the page: a heading that can be gone to, a line that explains it, what to be `warned` of, and the view. */
export function Section({ id, title, caption, warned, children, wide = false }) {
  return (
    <section id={id} class={wide ? "card wide" : "card"} aria-labelledby={`${id}-title`}>
      <h2 id={`${id}-title`} tabIndex={-1}>
        {title}
      </h2>
      <p class="caption">{caption}</p>
      {warned && <Missing>{warned}</Missing>}
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

/** The warning over what reads out vectors that were not made for it, or over what is `said` to. */
export const warning = ({ predicts }, said) => {
  const what = said ? `${said} its vectors as read` : "what follows reads its vectors";
  return predicts ? null : `This model was not trained to predict tokens; ${what} through the embedding table.`;
};

/** Says what a view cannot show here, and how to get it. */
export const Missing = ({ children }) => <p class="missing">{children}</p>;
