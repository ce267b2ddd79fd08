%% SPDX-License-Identifier: Apache-2.0
%% A gen_server whose calls are counted by who makes them.
-module(counted).
-behaviour(gen_server).
-export([main/0, init/1, handle_call/3, handle_cast/2]).

main() ->
    Port = open_port({fd, 0, 0}, [in, eof, {line, 80}]),
    ok = logger:set_primary_config(level, none),
    io:format("ready~n"),
    loop(Port).

loop(Port) ->
    receive
        {Port, {data, _}} -> plant(), io:format("done~n"), loop(Port);
        {Port, eof} -> ok
    end.

plant() ->
    {ok, Server} = gen_server:start(?MODULE, [], []),
    [ok = gen_server:call(Server, N) || N <- lists:seq(1, 2323)],
    [gen_server:cast(Server, N) || N <- lists:seq(1, 1777)],
    {'EXIT', _} = (catch gen_server:call(Server, crash)).

init(State) -> {ok, State}.

handle_call(crash, _, State) -> {reply, 1 / length(State), State};
handle_call(_, _, State) -> {reply, ok, State}.

handle_cast(_, State) -> noreply(State).

noreply(State) -> {noreply, State}.
