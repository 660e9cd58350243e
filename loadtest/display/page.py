"""The report as one self-contained HTML page: the console's tables and SVG charts, no scripts and no requests."""

import io
from html import escape

from loadtest.display.charts import line_chart
from loadtest.display.console import print_report
from loadtest.report import Report, SweepReport
from retrieval.system.console import Console

WIDTH = 112  # characters per line of the tables
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 900px; margin: 40px auto; padding: 0 20px; font: 16px/1.5 system-ui, sans-serif; }}
pre {{ overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; }}
figure {{ margin: 24px 0; }}
svg {{ width: 100%; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Latencies count from when each request was due.</p>
<pre>{tables}</pre>
{charts}
</body>
</html>
"""


def render(report: Report | SweepReport) -> str:
    """Render a run or a sweep as HTML."""
    if isinstance(report, SweepReport):
        url, charts = report.steps[0].url if report.steps else "a service", _sweep_charts(report)
    else:
        url, charts = report.url, _run_charts(report)
    console = Console(record=True, file=io.StringIO(), width=WIDTH, markup=False, highlight=False)
    print_report(report, console)
    tables = console.export_html(code_format="{code}", inline_styles=True)
    return PAGE.format(title=escape(f"Load test of {url}"), tables=tables, charts="\n".join(charts))


def _run_charts(report: Report) -> list[str]:
    end = report.seconds
    switches = report.switching.switches if report.switching else ()
    shaded = [(switch.started_seconds, min(end, switch.ended_seconds or end)) for switch in switches]
    points = report.timeline
    width = points[1].at_seconds if len(points) > 1 else max(end, 1e-9)
    rates = {
        "sent": [(point.at_seconds, point.sent_per_second) for point in points],
        "answered": [(point.at_seconds, point.answered_per_second) for point in points],
        "failed": [(point.at_seconds, point.failed / width) for point in points],
    }
    latency = {
        "p50": [(point.at_seconds, point.p50_ms) for point in points if point.p50_ms is not None],
        "p99": [(point.at_seconds, point.p99_ms) for point in points if point.p99_ms is not None],
    }
    title = "Latency by the time at which requests were due" + (", switches shaded" if shaded else "")
    charts = [line_chart(title, "seconds", "milliseconds", latency, shaded=shaded, log=True)] if latency["p50"] else []
    title = "Requests by the time at which they were due"
    return [*charts, line_chart(title, "seconds", "requests per second", rates, shaded=shaded)]


def _sweep_charts(report: SweepReport) -> list[str]:
    answered = [step for step in report.steps if step.latency.count]
    if not answered:
        return []
    knee = next((step for step in answered if step.offered == report.knee), None)
    curves = {
        "p50": [(step.achieved, step.latency.p50_ms) for step in answered],
        "p99": [(step.achieved, step.latency.p99_ms) for step in answered],
    }
    mark = (knee.achieved, f"knee, {knee.offered:,.0f}/s") if knee else None
    title, x_title = "Latency by throughput, one point per rate", "answers with 200 per second"
    return [line_chart(title, x_title, "milliseconds", curves, mark=mark, markers=True, log=True)]
