"""The check of a document: its Python listings are extracted, run apart from this machine, and judged.

`extract` finds the listings, `names` decides which listing continues which, `keeper` and `child` run them in processes
of their own (`isolation`, `stand_ins`, `gpu`), `compare` reads the documented outputs, `causes` names what is wrong and
`fixes` applies the remedy. `check` puts the parts together, and `report` prints the result.
"""
