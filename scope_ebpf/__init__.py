# SPDX-License-Identifier: Apache-2.0
"""See inside Erlang and Elixir virtual machines from the outside, with eBPF."""
