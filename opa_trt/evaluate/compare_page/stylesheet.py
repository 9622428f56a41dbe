"""How the page looks, on a light ground and on a dark one."""

from __future__ import annotations

from opa_trt.evaluate.compare_page.palette import themed

RULES = """
:root { --sans: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
* { box-sizing: border-box; }
html { background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans);
  -webkit-text-size-adjust: 100%; }
body { max-width: 68rem; margin: 0 auto; padding: 2.2rem 1.2rem 5rem; }
h1 { font-size: 1.85rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.28rem; margin: 3rem 0 .7rem; padding-top: .9rem;
  border-top: 1px solid var(--grid); }
h3 { font-size: 1.02rem; margin: 1.7rem 0 .4rem; }
p, ul, dl { max-width: 46rem; margin: .55rem 0; }
ul { padding-left: 1.2rem; }
a { color: var(--arm-opa_split); }
code { font-size: .9em; overflow-wrap: anywhere; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  max-width: none; font-size: .93rem; }
.lead { font-size: 1.06rem; }
.quiet, figcaption, caption, dt { color: var(--faint); }
.notice { border-left: 4px solid var(--bad); padding: .35rem .9rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--arm-opa_split); }
table { border-collapse: collapse; font-size: .89rem; font-variant-numeric: tabular-nums;
  margin: .9rem 0; min-width: 24rem; }
caption { text-align: left; padding-bottom: .35rem; font-size: .89rem; }
th, td { padding: .26rem .75rem .26rem 0; text-align: left; vertical-align: baseline;
  white-space: nowrap; border-bottom: 1px solid var(--grid); }
th.right, td.right { text-align: right; padding-left: .8rem; }
thead th { white-space: normal; font-weight: 600;
  border-bottom: 1.5px solid var(--faint); vertical-align: bottom; }
tbody th { font-weight: 500; }
tr.ours th, tr.ours td { font-weight: 650; }
tr.reference th, tr.reference td { color: var(--faint); }
.dot { display: inline-block; width: .62em; height: .62em; border-radius: 50%;
  margin-right: .5em; }
figure { margin: 1.3rem 0 1.9rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: .89rem; max-width: 46rem; margin-top: .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem;
  font-size: .95rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.goals { list-style: none; padding: 0; max-width: none; }
.goals > li { display: grid; grid-template-columns: 8.2rem 1fr; gap: 0 1rem;
  padding: .75rem 0; border-bottom: 1px solid var(--grid); }
.goals p { margin: .1rem 0; }
.figure { font-variant-numeric: tabular-nums; font-weight: 600; }
.verdict { font-weight: 700; white-space: nowrap; }
.met { color: var(--good); } .missed { color: var(--bad); } .open { color: var(--faint); }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--faint); font-size: .92rem; }
footer { margin-top: 4rem; color: var(--faint); font-size: .89rem; }
@media (max-width: 40rem) {
  .goals > li { grid-template-columns: 1fr; }
  dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; }
}
@media print { details > * { display: block; } .scroll { overflow: visible; } }
"""


def stylesheet() -> str:
    """All rules, the hues first."""
    hues = themed()
    light = "".join(f"--{variable}: {hue}; " for hue, (variable, _) in hues.items())
    dark = "".join(f"--{variable}: {hue}; " for variable, hue in hues.values())
    return (
        f":root {{ color-scheme: light dark; {light}}}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n{RULES}"
    )
