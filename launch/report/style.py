"""The report's style sheet: light and dark, narrow and wide, on screen and on paper."""

_LIGHT = """--paper: #fff; --panel: #f5f6f8; --ink: #16191d; --soft: #59616b; --line: #dfe3e8;
  --blue: #1f6bb0; --orange: #b8500f;"""

_DARK = """--paper: #15181c; --panel: #1d2126; --ink: #e7eaee; --soft: #a0a9b4; --line: #343a42;
  --blue: #6aaef0; --orange: #f09a4e;"""

CSS = (
    f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
@media print {{ :root {{ color-scheme: light; {_LIGHT} }} }}
"""
    + """
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 74rem; padding: 0 clamp(1rem, 4vw, 3rem) 5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
a { color: var(--blue); text-underline-offset: .15em; }
p { margin: .75rem 0; max-width: 44rem; }

header { padding-top: clamp(2rem, 6vw, 4rem); }
.kicker { margin: 0; color: var(--soft); font-size: .85rem; }
h1 { margin: .15rem 0 .75rem; font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.2; font-weight: 650;
  letter-spacing: -.015em; }
.lead { font-size: 1.05rem; max-width: 48rem; }
.links { color: var(--soft); font-size: .9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 9.5rem), 1fr)); gap: 1.5rem 2rem;
  margin: 2rem 0 0; padding: 1.5rem 0; border: solid var(--line); border-width: 1px 0; }
.figures div { min-width: 0; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
dd b { display: block; font-size: 1.75rem; line-height: 1.3; font-weight: 600; letter-spacing: -.01em;
  white-space: nowrap; }
dd span { display: block; color: var(--soft); font-size: .8rem; line-height: 1.4; }

nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.15rem; margin: 0; padding: .65rem 0; list-style: none;
  white-space: nowrap; font-size: .9rem; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--ink); text-decoration: underline; }

section { padding-top: 3.25rem; }
h2 { margin: 0 0 1rem; font-size: 1.35rem; line-height: 1.3; font-weight: 650; letter-spacing: -.01em; }
h3 { margin: 2rem 0 .5rem; font-size: 1rem; line-height: 1.4; font-weight: 600; }
h3 small { color: var(--soft); font-size: .8rem; font-weight: 400; white-space: nowrap; }
code { font-size: .92em; }
.note { padding: .7rem 1rem; background: var(--panel); border-left: 3px solid var(--orange); }
.small { color: var(--soft); font-size: .875rem; }

.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.45; }
th, td { padding: .4rem 2rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 400; white-space: nowrap; }
td { max-width: 44rem; }
.facts td { overflow-wrap: anywhere; }
details { margin: 1.5rem 0; }
summary { cursor: pointer; color: var(--blue); }

figure { margin: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 2.5rem 3rem;
  margin-top: 1.5rem; }
.plot { break-inside: avoid; min-width: 0; }
.plot h3 { margin: 0 0 .5rem; }
.plot svg { display: block; width: 100%; height: auto; font-family: inherit; }
.plot figcaption { margin-top: .4rem; color: var(--soft); font-size: .82rem; line-height: 1.5; max-width: 40rem; }
.plot g:has(> title):hover path { opacity: .65; }

.thumbs { display: flex; flex-wrap: wrap; gap: .9rem .7rem; }
.thumb { width: 4.5rem; font-size: .72rem; line-height: 1.35; }
.thumb img { display: block; width: 4.5rem; height: 4.5rem; object-fit: contain; background: var(--panel);
  border-radius: 3px; image-rendering: pixelated; }
.thumb img.soft { image-rendering: auto; }
.thumb i { display: block; height: 3px; margin-top: 3px; background: linear-gradient(currentColor 0 0) no-repeat
  left / calc(100% * var(--share)) 100%; }
.thumb figcaption { margin-top: .25rem; color: var(--soft); }
.thumb span { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.thumb span:first-child { color: var(--ink); }
.up i { color: var(--blue); } .down i { color: var(--orange); }
.case { display: grid; grid-template-columns: 5.5rem 1fr 1fr; gap: 1rem 2.25rem; padding: 1.1rem 0;
  border-bottom: 1px solid var(--line); break-inside: avoid; }
.case > .thumb, .case > .thumb img { width: 5.5rem; } .case > .thumb img { height: 5.5rem; }
.case > div { min-width: 0; }
.case .thumbs { display: grid; grid-template-columns: repeat(6, minmax(0, 4.25rem)); gap: .6rem .5rem; }
.case .thumbs .thumb, .case .thumbs img { width: 100%; } .case .thumbs img { height: auto; aspect-ratio: 1; }
.case h3 { margin: 0 0 .4rem; color: var(--soft); font-size: .78rem; font-weight: 400; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.75rem 1rem;
  margin-top: 1.25rem; }
.pair { display: flex; gap: 1rem; break-inside: avoid; }
.pair .thumbs { flex: none; max-width: 9.7rem; }
.pair p { margin: 0; color: var(--soft); font-size: .78rem; line-height: 1.5; }
.pair p b { color: var(--ink); font-weight: 600; }

@media (max-width: 52rem) { .case { grid-template-columns: 1fr; gap: .9rem; } }
@media (max-width: 40rem) {
  .facts th, .facts td { display: block; padding-right: 0; }
  .facts th { padding-bottom: 0; border: 0; } .facts td { padding-top: 0; }
  nav { position: static; } html { scroll-padding-top: 1rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { max-width: none; padding: 0; font-size: 10.5pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  nav { display: none; }
  section { padding-top: 2rem; } h2, h3 { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; gap: 1.5rem; }
  .scroll { overflow: visible; }
  .case { grid-template-columns: 4rem 1fr 1fr; gap: .5rem 1.2rem; padding: .6rem 0; }
  .case > .thumb, .case > .thumb img { width: 4rem; } .case > .thumb img { height: 4rem; }
  .thumbs, tr { break-inside: avoid; } .thumb { font-size: .6rem; } .case .thumbs { gap: .3rem; }
  .pairs { grid-template-columns: 1fr 1fr; gap: 1rem; }
}
"""
)
