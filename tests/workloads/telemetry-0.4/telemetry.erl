%% SPDX-License-Identifier: Apache-2.0
%% A telemetry with the public interface of 0.4: handlers are in a named table.
-module(telemetry).
-export([start/0, attach_many/4, detach/1, execute/2, execute/3]).

start() -> telemetry_handler_table:start().

attach_many(Id, Names, Function, Config) when is_function(Function, 4) ->
    telemetry_handler_table:insert(Id, Names, Function, Config).

detach(Id) -> telemetry_handler_table:delete(Id).

execute(Name, Measurements) -> execute(Name, Measurements, #{}).

execute(Name, Value, Metadata) when is_number(Value) ->
    execute(Name, #{value => Value}, Metadata);
execute(Name, Measurements, Metadata) when is_map(Measurements), is_map(Metadata) ->
    Handlers = telemetry_handler_table:list_for_event(Name),
    Call = fun({_, Id, Function, Config}) ->
        try Function(Name, Measurements, Metadata, Config)
        catch _:_ -> detach(Id)
        end
    end,
    lists:foreach(Call, Handlers).
