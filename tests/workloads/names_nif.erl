%% SPDX-License-Identifier: Apache-2.0
%% Native functions that keep a scheduler until the VM is killed, for some milliseconds, or until a
%% pipe is opened; one that keeps memory outside of the VM's allocators, and one that ends the VM. The library is found by an environment variable, because it is built by the test.
-module(names_nif).
-export([load/0, wedge/0, dirty/0, spin/1, dirty_spin/1, held/1, dirty_held/1, keep/1, become/0]).

load() -> erlang:load_nif(os:getenv("NAMES_NIF"), 0).
become() -> erlang:nif_error(not_loaded).
wedge() -> erlang:nif_error(not_loaded).
dirty() -> erlang:nif_error(not_loaded).
spin(_Milliseconds) -> erlang:nif_error(not_loaded).
dirty_spin(_Milliseconds) -> erlang:nif_error(not_loaded).
held(_Path) -> erlang:nif_error(not_loaded).
dirty_held(_Path) -> erlang:nif_error(not_loaded).
keep(_Bytes) -> erlang:nif_error(not_loaded).
