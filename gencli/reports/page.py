"""The pages of reports: their style sheet, and their Jinja templates, which `html` and `comparison` fill."""

STYLE = """\
:root {
  --paper: #f6f7f9; --card: #fff; --ink: #16191d; --soft: #5c6670; --rule: #e3e6ea; --accent: #2457c5;
  --good: #137a45; --good-tint: #e3f4ea; --bad: #b8271d; --bad-tint: #fce8e6; --s0: #2457c5; --s1: #d9680b;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #111418; --card: #1a1e24; --ink: #e8eaed; --soft: #9aa4af; --rule: #2c323a; --accent: #83abff;
    --good: #5fd394; --good-tint: #15301f; --bad: #ff8c82; --bad-tint: #3a1b19; --s0: #83abff; --s1: #ffa657;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header > div, footer { max-width: 68rem; margin: 0 auto; padding: 0 1.25rem; }
header { background: var(--card); border-bottom: 1px solid var(--rule); padding: 2.25rem 0 2rem; }
h1 { font-size: clamp(1.45rem, 4.5vw, 2.1rem); line-height: 1.2; letter-spacing: -.02em; margin: .9rem 0 .35rem;
  overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; letter-spacing: -.01em; margin: 0 0 .25rem; }
h3 { font-size: .8rem; font-weight: 600; margin: 0; color: var(--soft); overflow-wrap: anywhere; }
p { margin: 0; }
code { font-family: var(--mono); font-size: .875em; overflow-wrap: anywhere; }
.soft, .facts { color: var(--soft); }
.facts { overflow-wrap: anywhere; }
.verdict { display: inline-block; padding: .2rem .8rem; border-radius: 2rem; font-weight: 600; font-size: .9rem;
  background: var(--rule); }
.verdict.good { color: var(--good); background: var(--good-tint); }
.verdict.bad { color: var(--bad); background: var(--bad-tint); }
section { margin: 2.5rem 0; }
section > p { color: var(--soft); margin-bottom: 1rem; max-width: 46rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: .75rem; padding: 1rem; }
.headlines { display: grid; gap: .75rem; margin-top: 1.75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr)); }
.headlines .card { background: var(--paper); }
.headlines .big { font-size: 1.75rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.big .error { font-size: 1rem; font-weight: 400; letter-spacing: 0; color: var(--soft); white-space: nowrap; }
.small { font-size: .8125rem; color: var(--soft); }
ul.gate { list-style: none; margin: 1rem 0 0; padding: 0; }
ul.gate li { display: grid; grid-template-columns: 1.5rem minmax(0, 1fr) minmax(0, 15rem); gap: .25rem .5rem;
  align-items: center; padding: .8rem 1rem; border-bottom: 1px solid var(--rule); }
ul.gate li:last-child { border: 0; }
ul.gate.card { padding: 0; }
.mark { font-weight: 700; } .mark.good { color: var(--good); } .mark.bad { color: var(--bad); }
.numbers { padding: 0; overflow: hidden; }
.number { border-bottom: 1px solid var(--rule); }
.number:last-child { border: 0; }
.number summary { display: grid; gap: .1rem 1.25rem; padding: .7rem 1rem .7rem 2.1rem; position: relative;
  grid-template-columns: minmax(0, 1fr) minmax(9rem, auto) 10rem; align-items: baseline; cursor: pointer;
  list-style: none; }
.number summary::-webkit-details-marker { display: none; }
.number summary::before { content: ""; position: absolute; left: 1rem; top: 1.1rem; width: .4rem; height: .4rem;
  border: solid var(--soft); border-width: 0 1.5px 1.5px 0; transform: rotate(-45deg); }
.number[open] summary::before { transform: rotate(45deg); }
.number summary:hover { background: var(--paper); }
.number .value { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }
.number .error { font-weight: 400; color: var(--soft); }
.number dl { padding: 0 1rem .5rem 2.1rem; }
.topic { margin: 1.5rem 0 .5rem; font-size: .95rem; color: var(--ink); }
.number .of { display: flex; justify-content: space-between; gap: .5rem; align-items: baseline; }
.kind { display: inline-block; margin-left: auto; font-size: .75rem; padding: .05rem .5rem; border-radius: 1rem;
  border: 1px solid var(--rule); color: var(--soft); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: .5rem 0 .25rem;
  font-size: .8125rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; gap: .5rem; grid-template-columns: repeat(12, minmax(0, 1fr)); }
.tiles.across { gap: 2px; }
.tiles.one { grid-template-columns: minmax(0, max-content); }
figure { margin: 0; }
figure img { display: block; width: 100%; border-radius: .2rem; image-rendering: pixelated; background: var(--rule); }
figure img + img { margin-top: 2px; }
.one img { image-rendering: auto; max-width: 100%; width: auto; }
figure audio { display: block; width: 100%; height: 1.75rem; margin-top: 2px; }
figcaption { font-size: .75rem; color: var(--soft); text-align: center; font-variant-numeric: tabular-nums; }
.texts { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.texts pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .875rem/1.5 var(--mono); }
.charts { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.charts .card { padding: .75rem .75rem .35rem; }
.tiles + .charts { margin-top: 1rem; }
.legend { display: flex; gap: 1.25rem; font-size: .8125rem; margin-bottom: .75rem; }
.legend span::before { content: ""; display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem;
  margin-right: .4rem; background: var(--s0); }
.legend span + span::before { background: var(--s1); }
svg { display: block; width: 100%; height: auto; }
svg text { font: 10px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .grid, svg .axis { stroke: var(--rule); stroke-width: 1; }
svg path { fill: none; stroke: var(--s0); stroke-width: 1.75; stroke-linejoin: round; }
svg .area { fill: var(--s0); fill-opacity: .18; stroke-width: 1.25; }
svg .dots { stroke-width: 3.2; stroke-linecap: round; stroke-opacity: .55; }
svg .s1 { stroke: var(--s1); } svg .area.s1 { fill: var(--s1); }
svg .track { stroke: var(--rule); stroke-width: 4; stroke-linecap: round; }
svg .bound { stroke: var(--ink); stroke-width: 2; }
svg .interval { stroke-width: 4; stroke-linecap: round; }
svg .interval.good { stroke: var(--good); } svg circle.good { fill: var(--good); }
svg .interval.bad { stroke: var(--bad); } svg circle.bad { fill: var(--bad); }
.scroll { overflow-x: auto; }
.compared { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.compared th, .compared td { text-align: right; vertical-align: baseline; padding: .5rem 0 .5rem 1.25rem;
  border-bottom: 1px solid var(--rule); font-weight: 400; white-space: nowrap; }
.compared th:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 11rem; }
.compared tr:first-child th { font-weight: 600; white-space: normal; overflow-wrap: anywhere; }
.compared tr:last-child > * { border: 0; }
.compared .best { font-weight: 700; }
.compared .clear { color: var(--ink); } .compared td .small { white-space: normal; }
dd.bad { color: var(--bad); }
footer { padding: 1.5rem 1.25rem 3rem; font-size: .8125rem; color: var(--soft); }
@media (max-width: 40rem) {
  header { padding: 1.5rem 0; }
  ul.gate li { grid-template-columns: 1.5rem minmax(0, 1fr); }
  ul.gate svg { grid-column: 2; }
  .number summary { grid-template-columns: minmax(0, 1fr) auto; }
  .number .value { grid-column: 2; grid-row: 1; }
  .number .of { grid-row: 2; grid-column: 2; justify-content: end; }
  .number .name { grid-row: 1 / span 2; }
  .tiles { grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .35rem; }
  .headlines { grid-template-columns: 1fr 1fr; gap: .5rem; }
  .headlines .card { padding: .75rem; } .headlines .big { font-size: 1.35rem; }
}
@media print { body { background: none; } section { break-inside: avoid; } }
"""

# What the templates share.
PARTS = {"head": """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ verdict }} – {{ title }}</title>
<style>
{{ style }}</style>
</head>
<body>
""", "gate": """\
{% if requirements %}
<section>
  <h2>Requirements</h2>
  <ul class="gate card">
    {% for result in requirements %}
    <li>
      <span class="mark {{ 'good' if result.passed else 'bad' }}">{{ "✓" if result.passed else "✗" }}</span>
      <div><code>{{ result.requirement }}</code><p class="small">{{ result.reason }}</p></div>
      {{ result.drawing | drawing }}
    </li>
    {% endfor %}
  </ul>
</section>
{% endif %}
""", "exhibits": """\
{% for exhibit in exhibits %}
<section>
  <h2>{{ exhibit.title }}</h2>
  <p>{{ exhibit.caption }}</p>
  {% if exhibit.tiles and exhibit.tiles[0].text %}
  <div class="texts">
    {% for tile in exhibit.tiles %}<div class="card">{% if tile.caption %}<p>{{ tile.caption }}</p>{% endif %}
    <pre>{{ tile.text }}</pre></div>
    {% endfor %}
  </div>
  {% elif exhibit.tiles %}
  <div class="tiles {{ 'one' if exhibit.across == 1 else 'across' if exhibit.across }}"
    style="{% if exhibit.across %}grid-template-columns: repeat({{ exhibit.across }}, minmax(0, 1fr)){% endif %}">
    {% for tile in exhibit.tiles %}
    <figure>{% for picture in tile.pictures %}<img src="{{ picture }}" alt="">{% endfor %}
      {%- if tile.sound %}<audio controls preload="none" src="{{ tile.sound }}"></audio>{% endif %}
      {%- if tile.caption %}<figcaption>{{ tile.caption }}</figcaption>{% endif %}</figure>
    {% endfor %}
  </div>
  {% endif %}
  {% if exhibit.charts %}
  {% if exhibit.legend %}
  <p class="legend">{% for name in exhibit.legend %}<span>{{ name }}</span>{% endfor %}</p>
  {% endif %}
  <div class="charts">
    {% for chart in exhibit.charts %}
    <div class="card"><h3>{{ chart.title }}</h3>{{ chart.svg | drawing }}</div>
    {% endfor %}
  </div>
  {% endif %}
</section>
{% endfor %}
""", "foot": """\
</main>
<footer>{{ date }}: <code>{{ command }}</code><br>gencli {{ version }}, python {{ python }}, torch {{ torch }}</footer>
</body>
</html>
"""}

PAGE = """\
{% include "head" %}
<header><div>
  <span class="verdict {{ '' if not requirements else 'good' if document.passed else 'bad' }}">{{ verdict }}</span>
  <h1>{{ title }}</h1>
  <p class="facts">
    {%- if document.model -%}
    A model of family {{ document.model.family }}, trained for {{ "{:,}".format(document.model.steps) }} steps on
    {{ document.model.trained_on }}; measured
    {%- else -%}
    Measured
    {%- endif %} on {{ "{:,}".format(document.data.n) }} examples
    {%- if document.samples %} and {{ "{:,}".format(document.samples.n) }} samples{% endif %}.
    {%- if document.data.skipped %} {{ "{:,}".format(document.data.skipped) }} unreadable examples left out.{% endif %}
  </p>
  {% if headlines %}
  <div class="headlines">
    {% for row in headlines %}
    <div class="card">
      <h3>{{ row.term.title }}</h3>
      <p class="big">{{ row.value }}{% if row.error %} <span class="error">± {{ row.error }}</span>{% endif %}</p>
      <p class="small">{{ row.unit ~ ", " if row.unit }}{{ row.term.better }} is better</p>
    </div>
    {% endfor %}
  </div>
  {% endif %}
</div></header>
<main>
{% include "gate" %}
<section>
  <h2>Numbers</h2>
  <p>After ± comes the standard error. The true value is better than a bound; it may lie on either side of an
    estimate.</p>
  {% for topic, rows in topics.items() %}
  <h3 class="topic">{{ topic }}</h3>
  <div class="numbers card">
    {% for row in rows %}
    <details class="number"><summary>
      <div class="name">{{ row.term.title }} <code class="soft">{{ row.name }}</code>
        {% if row.term.says %}<p class="small">{{ row.term.says }}</p>{% endif %}</div>
      <div class="value">{{ row.value }}{% if row.error %} <span class="error">± {{ row.error }}</span>{% endif %}</div>
      <div class="of small">{{ row.unit }} <span class="kind">{{ row.kind }}</span></div>
    </summary>
      <dl>
        <dt>n</dt><dd>{{ "{:,}".format(row.n) }}</dd>
        {% for name, value in row.protocol.items() %}
        <dt>{{ name }}</dt><dd>{{ value }}</dd>
        {% endfor %}
      </dl>
    </details>
    {% endfor %}
  </div>
  {% endfor %}
</section>
{% include "exhibits" %}
<section>
  <h2>How it was measured</h2>
  <p>Two numbers are comparable only where all of this is the same.</p>
  <div class="card"><dl>
    {% for name, value in shared.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>
    {% endfor %}
  </dl></div>
</section>
{% include "foot" %}
"""

COMPARISON = """\
{% include "head" %}
<header><div>
  <span class="verdict {{ '' if not requirements else 'good' if document.passed else 'bad' }}">{{ verdict }}</span>
  <h1>{{ title }}</h1>
  <p class="facts">{{ runs | length }} runs, measured on {{ "{:,}".format(document.data.n) }} examples with the same
    draws and seed.</p>
</div></header>
<main>
<section>
  <h2>Runs</h2>
  <div class="card"><dl>
    {% for run in runs %}
    <dt>{{ run.path }}</dt>
    <dd>family {{ run.family }}, {{ "{:,}".format(run.steps) }} steps on {{ run.trained_on }}</dd>
    {% endfor %}
    {% for run in document.failed %}
    <dt>{{ run.run }}</dt><dd class="bad">left out: {{ run.reason }}</dd>
    {% endfor %}
  </dl></div>
</section>
{% include "gate" %}
<section>
  <h2>Numbers</h2>
  <p>The best number of a row is bold. Below the others stands their difference, grey where chance explains it; after ±
    comes the standard error, of means over the same examples that of differences example by example.</p>
  {% for topic, rows in topics.items() %}
  <h3 class="topic">{{ topic }}</h3>
  <div class="card scroll"><table class="compared">
    <tr><th></th>{% for run in runs %}<th>{{ run.path }}</th>{% endfor %}</tr>
    {% for row in rows %}
    <tr><th>{{ row.term.title }} <code class="soft">{{ row.metric }}</code>
      <p class="small">{{ row.unit ~ ", " if row.unit }}{{ row.better or "neither" }} is better</p></th>
      {% for cell in row.cells %}
      <td>{% if cell %}<span class="{{ 'best' if cell.best }}">{{ cell.shown }}</span>
        {% if cell.apart %}<p class="small">not compared: {{ cell.apart }}</p>
        {% elif cell.change %}<p class="small {{ 'clear' if cell.clear }}">{{ cell.change }}</p>{% endif %}
      {% endif %}</td>
      {% endfor %}
    </tr>
    {% endfor %}
  </table></div>
  {% endfor %}
</section>
{% include "exhibits" %}
{% include "foot" %}
"""
