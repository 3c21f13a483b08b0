"""`GET /`: one page for people, without scripts or outside resources."""

from __future__ import annotations

from html import escape
from typing import Any, Final

from aiohttp import web

from proxy.web.health import status_of

_SECURITY_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>DICOMweb proxy: {status}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
  table {{ border-collapse: collapse; width: 100%; }}
  th, td {{ text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #8884; vertical-align: top; }}
  .up {{ color: #1a7f37; }} .down {{ color: #cf222e; }}
  @media (prefers-color-scheme: dark) {{ .up {{ color: #4ac26b; }} .down {{ color: #ff7b72; }} }}
  code {{ overflow-wrap: anywhere; }}
</style>
<h1>DICOMweb proxy</h1>
<p>Version {version}, mode {mode}, up {uptime}. It is <strong class="{css}">{status}</strong>.</p>
{table}
<h2>To try</h2>
<ul>
<li><a href="/studies?limit=25"><code>/studies?limit=25</code></a> lists studies (QIDO-RS)
<li><code>/studies/{{StudyInstanceUID}}</code> retrieves one (WADO-RS)
<li><a href="/status"><code>/status</code></a>, <a href="/health"><code>/health</code></a> and
<a href="/ping"><code>/ping</code></a> tell how the proxy fares
</ul>
</html>
"""

_ARCHIVES: Final = """<h2>Archives</h2>
<table>
<thead><tr><th>Archive<th>AE title<th>State<th>Associations<th>Last error</thead>
<tbody>
{rows}
</tbody>
</table>"""

_UPSTREAMS: Final = """<h2>DICOMweb server</h2>
<table>
<thead><tr><th>Requests go to<th>State<th>Last error</thead>
<tbody>
{rows}
</tbody>
</table>"""

_UPSTREAM: Final = '<tr><td><code>{url}</code><td class="{css}">{state}<td>{error}'

_ROW: Final = '<tr><td>{name}<td>{aet}<td class="{css}">{state}<td>{associations} of {maximum}<td>{error}'


async def status_page(request: web.Request) -> web.Response:
    """The status of the proxy and of what is behind it, for a browser."""
    state = await status_of(request)
    page = _PAGE.format(
        status=escape(state["status"]),
        css="up" if state["status"] == "healthy" else "down",
        version=escape(state["version"]),
        mode=escape(state["proxyMode"]),
        uptime=_duration(state["uptime"]),
        table=_table(state),
    )
    headers = {
        "Content-Security-Policy": _SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return web.Response(text=page, content_type="text/html", headers=headers)


def _table(state: dict[str, Any]) -> str:
    if "upstreams" in state:
        return _UPSTREAMS.format(rows="\n".join(map(_upstream, state["upstreams"])))
    return _ARCHIVES.format(rows="\n".join(map(_row, state["archives"])))


def _upstream(upstream: dict[str, Any]) -> str:
    up = upstream["up"]
    return _UPSTREAM.format(
        url=escape(upstream["url"]),
        css="up" if up else "down",
        state="answers" if up else "does not answer",
        error=escape(upstream["lastError"] or "none"),
    )


def _row(archive: dict[str, Any]) -> str:
    up = archive["up"]
    return _ROW.format(
        name=escape(archive["name"]),
        aet=escape(archive["aet"]),
        css="up" if up else "down",
        state="answers" if up else "does not answer",
        associations=archive["associations"],
        maximum=archive["maxAssociations"],
        error=escape(archive["lastError"] or "none"),
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
