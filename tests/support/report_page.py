"""Read a report page in tests: its elements, its embedded data, and its behaviour in a browser."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import pandas as pd


class Page(HTMLParser):
    """Elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def scripts(self):
        """Return the scripts that are executed, without the embedded data."""
        return [attributes for attributes in self.all("script") if "type" not in attributes]


def data_of(text: str, name: str) -> pd.DataFrame:
    """Return a table embedded in a page, by its name."""
    packed = re.search(rf'<script type="text/plain" id="data-{re.escape(name)}">(.*?)</script>', text, re.DOTALL)
    assert packed, f"the page has no data called {name}"
    contents = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    return pd.DataFrame(contents["columns"], index=range(contents["rows"]))


def opened(browser, path, **options):
    """Open a page; return its tab, and the lists of its messages and requests, which grow."""
    tab = browser.new_page(**options)
    complaints: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    return tab, complaints, requests


def asked_for(requests):
    """Return the requests other than those for embedded data."""
    return [url for url in requests if not url.startswith(("data:", "blob:"))]


def saved(tab, name, folder):
    """Click "Download CSV" for a table, and return the file and its content."""
    with tab.expect_download() as arriving:
        tab.click(f'button[data-saves="data-{name}"]')
    path = folder / arriving.value.suggested_filename
    arriving.value.save_as(path)
    return path, pd.read_csv(path, keep_default_na=False, na_values=[""])


def wait_for_rows(tab, table, count):
    """Wait until a table reports that it shows ``count`` rows."""
    told = f"{count} row" if count == 1 else f"{count} rows"
    pattern = re.compile(f"^{'the first 1000 of ' if count > 1000 else ''}{told}$")
    tab.locator(f'[role=status][data-table="{table}"]', has_text=pattern).wait_for()
