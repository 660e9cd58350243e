"""The report as one HTML page: style inside, curves as SVG, no script, and nothing is asked of anybody."""

from collections.abc import Mapping, Sequence
from html import escape

from loadtest.chart import chart
from loadtest.console import FIGURES, generator_line, milliseconds, sweep_line, switches_line, word
from loadtest.report import Latencies, Report, SweepReport
from loadtest.tally import OK

STYLE = """
:root { --paper: #fff; --raised: #f6f7f9; --ink: #1b1f26; --soft: #5b6472; --rule: #dfe3e8; --span: #fff0cf;
  --p50: #2458c5; --p99: #b4540a; --bad: #a8324a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --raised: #1d2128; --ink: #e7eaef; --soft: #9aa4b2;
  --rule: #333a44; --span: #3a3115; --p50: #7aa7ff; --p99: #f0a35e; --bad: #f28ba0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 900px; margin: 0 auto; padding: 40px 20px 80px; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 44px 0 6px; }
p { max-width: 72ch; margin: 8px 0; }
.quiet, figcaption, th { color: var(--soft); }
.invalid { color: var(--bad); font-weight: 600; border-left: 4px solid var(--bad); padding-left: 12px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: right; padding: 5px 12px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; font-size: .82rem; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
figure { margin: 16px 0 0; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--rule); } .tick, .title, .note { fill: var(--soft); font-size: 12px; }
.note { fill: var(--ink); } .mark { stroke: var(--ink); stroke-dasharray: 4 4; } .span { fill: var(--span); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.p50 { stroke: var(--p50); } .line.p99 { stroke: var(--p99); }
.line.answered { stroke: var(--p50); } .line.failed { stroke: var(--bad); } .line.sent { stroke: var(--soft); }
.dot.p50 { fill: var(--p50); } .dot.p99 { fill: var(--p99); }
.key { font-weight: 600; } .key.p50, .key.answered { color: var(--p50); } .key.p99 { color: var(--p99); }
.key.failed { color: var(--bad); } .key.sent { color: var(--soft); }
"""


def run_page(report: Report) -> str:
    """A run: its figures, the service's stages, and the curves over time with the changes of bundle shaded."""
    at = report.latency
    early = " It was ended early." if report.interrupted else ""
    rows = {"answered, 200": at} | {kind: found for kind, found in sorted(report.outcomes.items()) if kind != OK}
    if report.switching:
        rows |= {"200 during switches": report.switching.during, "200 otherwise": report.switching.steady}
    parts = [
        f"<p>{report.rate:,g} requests a second were asked for ({report.arrivals} arrivals, "
        f"{report.queries:,} queries, k={report.k}), {report.offered:,g} offered and {report.achieved:,g} achieved, "
        f"for {report.seconds:g} s.{early} Latencies are counted from when a request was due.</p>",
        _invalid(report.invalid),
        "<h2>Latency, milliseconds</h2>",
        _latencies(rows),
        f'<p class="quiet">{escape(switches_line(report.switching))}</p>' if report.switching else "",
        "<h2>Over time</h2>",
        *_over_time(report),
        "<h2>Inside the service, and the generator, milliseconds</h2>",
        _latencies({**report.stages, "the generator's lag": report.lag}),
        f'<p class="quiet">{escape(generator_line(report))}</p>',
    ]
    return _page(f"Load test of {report.url}", parts)


def sweep_page(report: SweepReport) -> str:
    """A sweep: latency by throughput, and a row a rate."""
    url = report.steps[0].url if report.steps else "a service"
    shown = [step for step in report.steps if step.latency.count]
    parts = [f"<p>{escape(sweep_line(report))}</p>", _invalid(report.invalid)]
    if shown:
        knee = next((step for step in shown if step.offered == report.knee), None)
        curves = {
            "p50": [(step.achieved, step.latency.p50_ms) for step in shown],
            "p99": [(step.achieved, step.latency.p99_ms) for step in shown],
        }
        mark = (knee.achieved, f"knee, {knee.offered:,.0f}/s") if knee else None
        parts += [
            "<h2>Latency by throughput</h2>",
            chart(
                "Each dot is one rate", "200s a second", "milliseconds", curves, mark=mark, dots=True, logarithmic=True
            ),
            _keys("p50", "p99"),
            _steps(report),
        ]
    parts.append(
        '<p class="quiet">The knee is the rate with the greatest throughput divided by mean latency, among those '
        "the service kept up with: 99 % of the requests got a 200, and 95 % while others were still being sent.</p>"
    )
    return _page(f"Load test of {url}", parts)


def _over_time(report: Report) -> list[str]:
    end = report.seconds
    spans = [
        (one.began_seconds, end if one.ended_seconds is None else min(end, one.ended_seconds))
        for one in (report.switching.switches if report.switching else ())
    ]
    moments = report.moments
    latency = {
        "p50": [(one.at_seconds, one.p50_ms) for one in moments if one.p50_ms is not None],
        "p99": [(one.at_seconds, one.p99_ms) for one in moments if one.p99_ms is not None],
    }
    width = moments[1].at_seconds if len(moments) > 1 else max(end, 1e-9)
    rates = {
        "sent": [(one.at_seconds, one.sent_per_second) for one in moments],
        "answered": [(one.at_seconds, one.answered_per_second) for one in moments],
        "failed": [(one.at_seconds, one.failed / width) for one in moments],
    }
    title = "Latency of the requests due in each stretch" + (", changes of bundle shaded" if spans else "")
    drawn = [chart("Requests a second, by when they were due", "seconds", "a second", rates, spans=spans)]
    if latency["p50"]:
        drawn = [
            chart(title, "seconds", "milliseconds", latency, spans=spans, logarithmic=True), _keys("p50", "p99"), *drawn
        ]  # fmt: skip
    return [*drawn, _keys("sent", "answered", "failed")]


def _latencies(rows: Mapping[str, Latencies]) -> str:
    body = []
    for name, found in rows.items():
        values = (found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms)
        body.append([name, f"{found.count:,}", *(map(milliseconds, values) if found.count else "––––––")])
    return _table(["", *FIGURES], body)


def _steps(report: SweepReport) -> str:
    body = []
    for step in report.steps:
        at = step.latency
        shown = map(milliseconds, (at.p50_ms, at.p90_ms, at.p99_ms, at.p999_ms, at.max_ms, step.lag.p99_ms))
        body.append([f"{step.offered:,.0f}", f"{step.achieved:,.0f}", *shown, f"{step.failed:,}", word(step, report)])
    headings = ["offered/s", "achieved/s", "p50", "p90", "p99", "p99.9", "max", "lag p99", "failed", ""]
    return _table(headings, body)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _keys(*names: str) -> str:
    return "<p>" + " · ".join(f'<span class="key {name}">{name}</span>' for name in names) + "</p>"


def _invalid(reasons: Sequence[str]) -> str:
    return "".join(f'<p class="invalid">Invalid: {escape(reason)}</p>' for reason in reasons)


def _page(title: str, parts: Sequence[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
<h1>{escape(title)}</h1>
{body}
</main></body>
</html>
"""
