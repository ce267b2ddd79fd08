%% SPDX-License-Identifier: Apache-2.0
%% Where handlers are is a persistent term: a module, and its table.
-module(telemetry_handler_table).
-export([start/0, persist/0, insert/4, delete/1, list_for_event/1]).

start() ->
    Table = ets:new(?MODULE, [duplicate_bag, public, {read_concurrency, true}]),
    persistent_term:put(telemetry, {telemetry_ets, Table}),
    ok.

persist() ->
    {telemetry_ets, Table} = found(),
    persistent_term:put(telemetry, {telemetry_pt, telemetry_pt:new(ets:tab2list(Table))}),
    ok.

insert(Id, Names, Function, Config) ->
    {telemetry_ets, Table} = found(),
    ets:insert(Table, [{Name, Id, Function, Config} || Name <- Names]),
    ok.

delete(Id) ->
    case found() of
        {telemetry_ets, Table} -> ets:match_delete(Table, {'_', Id, '_', '_'});
        _ -> ok
    end,
    ok.

list_for_event(Name) ->
    {Module, Table} = found(),
    Module:list_for_event(Table, Name).

found() -> persistent_term:get(telemetry, {telemetry_pt, #{}}).
