%% SPDX-License-Identifier: Apache-2.0
%% Native functions that keep a scheduler until the VM is killed, or for some milliseconds, and one that
%% ends the VM. The library is found by an environment variable, because it is built by the test.
-module(names_nif).
-export([load/0, wedge/0, dirty/0, spin/1, dirty_spin/1, become/0]).

load() -> erlang:load_nif(os:getenv("NAMES_NIF"), 0).
become() -> erlang:nif_error(not_loaded).
wedge() -> erlang:nif_error(not_loaded).
dirty() -> erlang:nif_error(not_loaded).
spin(_Milliseconds) -> erlang:nif_error(not_loaded).
dirty_spin(_Milliseconds) -> erlang:nif_error(not_loaded).
