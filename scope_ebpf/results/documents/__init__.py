# SPDX-License-Identifier: Apache-2.0
"""
The JSON documents of all commands, as typed records.

The functions that make a document are annotated with its record, and
``packaging/make_schemas.py`` makes ``scope_ebpf/schemas`` from the records. A comment above a field
becomes its description there. Nothing imports these modules when a command runs.
"""
