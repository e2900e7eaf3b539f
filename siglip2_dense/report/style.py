"""How the page looks: light and dark, wide, narrow and on paper. Charts take their colours from here."""

STYLE = """
:root {
  --paper: #fdfdfc; --ink: #1d2126; --soft: #5c6570; --rule: #dfe2e6; --panel: #f3f4f6; --link: #1a5fb4;
  --better: #17713c; --worse: #b3261e; --level: #5c6570; --bar: #2f6db3;
  --series-0: #2f6db3; --series-1: #c8553d; --series-2: #2e8b57; --series-3: #8e5bb5; --series-4: #a97708;
  --series-5: #1c8c99; --series-6: #c2477f; --series-7: #6b6b6b; --series-8: #7a6a2b; --series-9: #5a4fcf;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e4e7eb; --soft: #9aa4b0; --rule: #353b43; --panel: #1f242a; --link: #8ab8f2;
    --better: #6fcf97; --worse: #f2928a; --level: #9aa4b0; --bar: #5b93d3;
    --series-0: #7db0ea; --series-1: #f08c74; --series-2: #6fcf97; --series-3: #c39be6; --series-4: #e6b84c;
    --series-5: #5fd0dc; --series-6: #f08fb8; --series-7: #b0b0b0; --series-8: #c9b76a; --series-9: #9d95f5;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
nav {
  position: sticky; top: 0; z-index: 2; display: flex; gap: 1.25rem; overflow-x: auto; white-space: nowrap;
  padding: .6rem max(1rem, calc(50vw - 35rem)); background: var(--paper); border-bottom: 1px solid var(--rule);
  font-size: .875rem;
}
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
h1, h2, h3 { line-height: 1.25; margin: 2.25rem 0 .5rem; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; margin-top: 1rem; }
h2 { font-size: 1.375rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.0625rem; }
h1 a, h2 a, h3 a { color: inherit; }
h2 a:hover::after, h3 a:hover::after { content: " #"; color: var(--soft); }
p, ul { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
ul { padding-left: 1.25rem; }
p.summary { color: var(--soft); }
ul.note { font-size: .875rem; color: var(--soft); }
ul.problem { border-left: 3px solid var(--worse); list-style: none; padding-left: .9rem; }
ul.problem li + li { margin-top: .4rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; vertical-align: bottom; }
thead th[colspan] { text-align: left; color: var(--ink); }
thead th:not(:first-child) small { white-space: normal; max-width: 7.5rem; margin-left: auto; }
tbody th { white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: var(--paper); text-align: left; font-weight: 500; }
td.start, th.start { border-left: 1px solid var(--rule); }
th small, td small { display: block; color: var(--soft); font-weight: 400; white-space: nowrap; }
td.published { color: var(--soft); }
td.better, td.better small { color: var(--better); }
td.worse, td.worse small { color: var(--worse); }
td.level, td.level small { color: var(--level); }
details { margin: .5rem 0; border: 1px solid var(--rule); border-radius: 6px; padding: 0 .8rem; }
details[open] { padding-bottom: .4rem; }
summary { cursor: pointer; padding: .45rem 0; font-size: .9375rem; }
details td, details thead th { text-align: left; }
details td { overflow-wrap: anywhere; min-width: 8rem; }
pre {
  overflow-x: auto; background: var(--panel); border-radius: 6px; padding: .8rem; font-size: .8125rem;
  line-height: 1.45;
}
figure { margin: 0; min-width: 0; }
figcaption { font-size: .875rem; color: var(--soft); margin-bottom: .25rem; overflow-wrap: anywhere; }
.charts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem; margin: 1rem 0;
}
.charts figure { max-width: 34rem; }
svg.chart { display: block; width: 100%; height: auto; }
svg.chart text { font-family: inherit !important; }
.pictures { display: grid; gap: 1.5rem; }
.pictures .wide { margin: 0; }
.pictures img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.bars { list-style: none; margin: .5rem 0; padding: 0; columns: 20rem auto; column-gap: 2.5rem; font-size: .8125rem; }
.bars li {
  display: grid; grid-template-columns: 8.5rem 1fr 3.2rem; gap: .6rem; align-items: center; break-inside: avoid;
}
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .track { height: .7rem; background: var(--panel); border-radius: 2px; }
.bars .bar { display: block; height: 100%; background: var(--bar); border-radius: 2px; }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 40rem) {
  tbody th { white-space: normal; }
  th:first-child { min-width: 8.5rem; max-width: 45vw; overflow-wrap: anywhere; }
  th:first-child small { white-space: normal; }
  .pictures img { max-width: none; width: 46rem; }
}
@page { size: A4 landscape; margin: 12mm; }
@media print {
  :root { color-scheme: light; }
  nav { display: none; }
  main { max-width: none; padding: 0; }
  body { font-size: 10pt; }
  h1, h2, h3 { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  .wide { overflow: visible; }
  table { font-size: 6.5pt; }
  th, td { padding: .1rem .25rem; }
  thead th:not(:first-child) small { max-width: 4.5rem; }
  .charts { grid-template-columns: repeat(3, 1fr); }
  th:first-child { position: static; }
  .bars .track, .bars .bar { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
