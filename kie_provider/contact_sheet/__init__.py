"""All images of a run as one HTML page, one PNG and one JSON file: :func:`write_contact_sheet`.

A sheet is a report: a result without a file, or with one that cannot be read, gets a tile that says so, and does not
stop the others. Results come from Kie and through XCom, so nothing in them is trusted.
"""

from kie_provider.contact_sheet.sheet import write_contact_sheet

__all__ = ["write_contact_sheet"]
