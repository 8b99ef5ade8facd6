"""One page, one picture and one list that show all images of a run: :func:`write_contact_sheet`.

A sheet is a report: what is wrong with one result (no file, a file that cannot be read) is shown in its tile and
never stops the others. Results come from Kie and through XCom, so nothing in them is trusted.
"""

from kie_provider.contact_sheet.sheet import write_contact_sheet

__all__ = ["write_contact_sheet"]
