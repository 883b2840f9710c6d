"""The report of a run: every clause and every implementation as JSON and as one page.

recording    values that tests compare, for the clauses of documented values
plugin       `pytest --report DIR`, and the properties of JUnit XML
document     report.json: its parts, its order, its schema (report.schema.json)
drawings     numbers and images for the drawings, computed by the implementation under test
page         index.html, rendered from report.json alone (templates/)
compare      merge, diff, badge and history, for `python -m spec.report`
"""
