"""The published OHIF viewer: which one, and its configuration, which tells it where the DICOMweb server is."""

from __future__ import annotations

import json

VERSION = "3.13.2"
PACKAGE = "@ohif/app"

# The keys are OHIF's; its documentation has them under "Data Source Configuration".
SOURCE = {
    "friendlyName": "proxy",
    "name": "proxy",
    "qidoSupportsIncludeField": True,
    "supportsReject": False,
    "supportsFuzzyMatching": True,
    "supportsWildcard": True,
    "imageRendering": "wadors",
    "thumbnailRendering": "wadors",
    "enableStudyLazyLoad": True,
    "dicomUploadEnabled": True,
    "omitQuotationForMultipartRequest": True,
    "bulkDataURI": {"enabled": True},
    "singlepart": "pdf,video",
}


def configuration(dicomweb: str, **more: object) -> str:
    """Return the `app-config.js` for a DICOMweb server; `more` are further keys of its data source."""
    roots = {"qidoRoot": dicomweb, "wadoRoot": dicomweb, "wadoUriRoot": f"{dicomweb}/wado"}
    config: dict[str, object] = {
        "routerBasename": None,
        "extensions": [],
        "modes": [],
        "showStudyList": True,
        "showErrorDetails": "always",
        "showLoadingIndicator": True,
        # A new browser profile is shown a tour and a notice, which lie over the viewport and take the mouse from it.
        "customizationService": {"ohif.tours": {"$set": []}},
        "investigationalUseDialog": {"option": "never"},
        "maxNumRequests": {"interaction": 100, "thumbnail": 75, "prefetch": 25},
        "defaultDataSourceName": "proxy",
        "dataSources": [
            {
                "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
                "sourceName": "proxy",
                "configuration": {**SOURCE, **roots, **more},
            }
        ],
    }
    return f"window.config = {json.dumps(config)};"
