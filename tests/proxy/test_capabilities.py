"""What the server says of itself: the capabilities document (PS3.18 8.9, Annex H), and OPTIONS on every resource."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from proxy.app import ROUTES
from proxy.dicomweb.transactions import template_of, transaction_of
from tests.peers.process import Address, free_port
from tests.proxy.running import Proxy, proxy_for
from tests.proxy.test_cors import located

WADL = "application/vnd.sun.wadl+xml"
SPACE = "{http://wadl.dev.java.net/2009/02}"

# The proxy's own, of which PS3.18 knows nothing.
OWN = {"/", "/conformance", "/ping", "/health", "/status", "/dimse/echo", "/cache", "/cache/studies/{study}"}

# PS3.18 Table H-1, of the Studies Service and with WADO-URI, as far as a proxy has it.
TABLE = {
    "/studies": {"SearchforStudies", "StoreInstances"},
    "/studies/{study}": {"RetrieveStudy", "StoreStudyInstances"},
    "/studies/{study}/metadata": {"RetrieveStudyMetadata"},
    "/studies/{study}/rendered": {"RetrieveRenderedStudy"},
    "/studies/{study}/thumbnail": {"RetrieveStudyThumbnail"},
    "/studies/{study}/series": {"SearchforStudySeries"},
    "/studies/{study}/instances": {"SearchforStudyInstances"},
    "/studies/{study}/series/{series}": {"RetrieveSeries"},
    "/studies/{study}/series/{series}/metadata": {"RetrieveSeriesMetadata"},
    "/studies/{study}/series/{series}/rendered": {"RetrieveRenderedSeries"},
    "/studies/{study}/series/{series}/thumbnail": {"RetrieveSeriesThumbnail"},
    "/studies/{study}/series/{series}/instances": {"SearchforStudySeriesInstances"},
    "/studies/{study}/series/{series}/instances/{instance}": {"RetrieveInstance"},
    "/studies/{study}/series/{series}/instances/{instance}/metadata": {"RetrieveInstanceMetadata"},
    "/studies/{study}/series/{series}/instances/{instance}/rendered": {"RetrieveRenderedInstance"},
    "/studies/{study}/series/{series}/instances/{instance}/thumbnail": {"RetrieveInstanceThumbnail"},
    "/studies/{study}/series/{series}/instances/{instance}/bulkdata/{path}": {"RetrieveInstanceBulkdata"},
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}": {"RetrieveFrames"},
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}/rendered": {"RetrieveRenderedFrames"},
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}/thumbnail": {"RetrieveFramesThumbnail"},
    "/series": {"SearchforSeries"},
    "/instances": {"SearchforInstances"},
    "/wado": {"RetrieveInstancebyURI"},
}


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy whose archive is down: it is not asked what it can do."""
    async with proxy_for(Address("NOBODY", free_port()), use_cget=True) as proxy:
        yield proxy


def resources(parent: ElementTree.Element, path: str = "") -> Iterator[tuple[str, ElementTree.Element]]:
    """Return the resources of a document with their whole paths."""
    for child in parent.findall(f"{SPACE}resource"):
        below = f"{path}/{child.attrib['path']}"
        yield below, child
        yield from resources(child, below)


async def wadl(proxy: Proxy, path: str = "/", method: str = "OPTIONS") -> dict[str, ElementTree.Element]:
    """Get the document, check its frame, and return its resources by path."""
    async with proxy.http.request(method, path, headers={"Accept": WADL}) as response:
        assert response.status == 200
        assert response.content_type == WADL
        root = ElementTree.fromstring(await response.text())
    assert root.tag == f"{SPACE}application"
    (top,) = root
    assert top.tag == f"{SPACE}resources"
    assert top.attrib["base"] == f"{proxy.url}/"
    return dict(resources(top))


def methods(resource: ElementTree.Element) -> set[str]:
    """Return the identifiers of the methods of a resource."""
    return {method.attrib["id"] for method in resource.findall(f"{SPACE}method")}


async def test_the_document_has_the_resources_of_the_standard(proxy: Proxy) -> None:
    found = await wadl(proxy)
    assert {path: methods(resource) for path, resource in found.items() if methods(resource)} == TABLE
    # A placeholder of a path is a parameter of its template.
    for path, resource in found.items():
        names = [param.attrib["name"] for param in resource.findall(f"{SPACE}param")]
        last = path.rpartition("/")[2]
        assert names == ([last[1:-1]] if last.startswith("{") else [])


async def test_the_document_can_be_had_by_get_and_as_json(proxy: Proxy) -> None:
    """By GET for people with a browser; JSON has the same resources and methods."""
    assert (await wadl(proxy, "/conformance", "GET")).keys() == (await wadl(proxy)).keys()
    async with proxy.http.options("/", headers={"Accept": "application/json"}) as response:
        assert response.content_type == "application/json"
        document: dict[str, Any] = await response.json()
    found = {
        each["path"]: {method["transaction"].replace(" ", "") for method in each["methods"].values()}
        for each in document["resources"]
    }
    assert found == TABLE
    assert document["base"] == proxy.url


async def test_other_forms_of_the_document_are_refused(proxy: Proxy) -> None:
    async with proxy.http.options("/", headers={"Accept": "image/png"}) as response:
        assert response.status == 406
        assert WADL in (await response.json())["error"]


async def test_a_resource_describes_itself_and_what_is_below(proxy: Proxy) -> None:
    for path in ("/series", "/studies/{study}/series", "/studies/{study}/series/{series}/instances/{instance}"):
        found = await wadl(proxy, located(path))
        assert {below: methods(each) for below, each in found.items() if methods(each)} == {
            below: names for below, names in TABLE.items() if f"{below}/".startswith(f"{path}/")
        }


async def test_every_route_says_which_methods_it_has(proxy: Proxy) -> None:
    """OPTIONS on each of them: 200 with what PS3.18 knows of, 204 for the proxy's own."""
    for _, path, _ in ROUTES:
        async with proxy.http.options(located(path)) as response:
            expected = {method for method, other, _ in ROUTES if other == path} | {"OPTIONS"}
            assert set(response.headers["Allow"].split(", ")) == expected, path
            assert response.status == (204 if path in OWN - {"/"} else 200), path


def test_every_route_is_known_to_the_document() -> None:
    """A route that is neither the proxy's own nor a transaction would not be described, nor its parameters checked."""
    for method, path, _ in ROUTES:
        known = transaction_of(method, path)
        assert (known is None) is (path in OWN), path
        assert known is None or known.identifier in TABLE[template_of(path)]


async def test_what_is_described_is_taken(proxy: Proxy) -> None:
    """Each parameter of the document is known to its resource, and each media type is one that it offers."""
    async with proxy.http.get("/conformance", headers={"Accept": "application/json"}) as response:
        document = await response.json()
    for resource in document["resources"]:
        for method, described in resource["methods"].items():
            path = located(resource["path"])
            for name in described["parameters"]:
                if name == "{attributeID}":
                    continue
                async with proxy.http.request(method, path, params={name: ""}) as response:
                    text = await response.text()
                    assert "unknown" not in text, (path, name)
