"""The check of a document: its Python listings are extracted, run in isolation, and judged.

`extract` finds the listings, `names` determines which listing continues which, `keeper` and `child` run them in
separate processes (`isolation`, `stand_ins`, `gpu`), `compare` compares the documented outputs, `causes` finds the
known cause of an error and `fixes` applies its fix. `check` combines the parts, and `report` prints the result.
"""
