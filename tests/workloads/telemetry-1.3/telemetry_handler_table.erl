%% SPDX-License-Identifier: Apache-2.0
-module(telemetry_handler_table).
-export([start/0, insert/4, delete/1, list_for_event/1]).

start() ->
    ets:new(?MODULE, [duplicate_bag, public, named_table, {read_concurrency, true}]),
    ok.

insert(Id, Names, Function, Config) ->
    ets:insert(?MODULE, [{Name, Id, Function, Config} || Name <- Names]),
    ok.

delete(Id) ->
    ets:match_delete(?MODULE, {'_', Id, '_', '_'}),
    ok.

list_for_event(Name) ->
    try ets:lookup(?MODULE, Name)
    catch error:badarg -> []
    end.
